"""Keep only the instructions of a file that differ enough from all earlier ones (exact ROUGE-L, in seconds).

python examples/novelty.py FILE [THRESHOLD]
"""

import sys

import spintune

index = spintune.NoveltyIndex(threshold=float(sys.argv[2]) if len(sys.argv) > 2 else 0.7)
kept = []
for example in spintune.read(sys.argv[1]):
    instruction = example.prompt[-1].content
    found = index.admit(instruction)
    if found.novel:
        kept.append(instruction)
    else:
        print(f"too close ({found.score:.2f}) to {kept[found.nearest]!r:.60}: {instruction!r:.60}")
print(f"{len(kept)} instructions are novel")
