"""Let a model answer, and ask how likely it finds answers of yours.

python examples/generate_and_score.py [MODEL]
"""

import sys

import spintune

model = spintune.load(sys.argv[1] if len(sys.argv) > 1 else "smollm2-135m-instruct")

questions = ["Name a color.", "Write one sentence about the sea."]
for question, completion in zip(questions, model.generate(questions, max_new_tokens=40, temperature=0.7), strict=True):
    print(f"{question}\n  {completion.text}  [{completion.finish_reason}]")

answers = ["Blue.", "Seven.", "Blue is a color that many people like."]
for answer, score in zip(answers, model.score("Name a color.", answers), strict=True):
    print(f"{score.logprob:8.2f} nats in {score.tokens} tokens ({score.per_token:.2f} a token): {answer}")
