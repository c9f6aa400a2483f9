"""A FLAN-style mixture of tasks: each row asked in several phrasings, with and without worked examples.

python examples/mixture.py TASK.yaml [TASK.yaml ...]
"""

import sys

import spintune

for example in spintune.mix(sys.argv[1:], 4, seed=7):
    print(f"--- {example.source}\n{example.prompt[-1].content}\n=> {example.answer}")
