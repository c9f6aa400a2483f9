"""A model on this machine writes instruction data from seed tasks (Self-Instruct).

    python examples/write_data.py [MODEL] [TARGET]

A small model writes poor data. For real data let an endpoint be the teacher: see the guide on writing data.
"""

import sys

import spintune

name = sys.argv[1] if len(sys.argv) > 1 else "smollm2-135m-instruct"
target = int(sys.argv[2]) if len(sys.argv) > 2 else 5

teacher = spintune.load(name).as_teacher()
result = spintune.synthesize("builtin:seeds", teacher, target=target, replies="replies.sqlite")
for written in result.examples:
    print(f"{written.task.instruction}\n  {written.task.output!r:.80}")
