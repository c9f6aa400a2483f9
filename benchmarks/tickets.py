"""Writes builtin:tickets: messages to a shop, each with its ticket as JSON. Everything is drawn by one seed.

python benchmarks/tickets.py > src/spintune/data/builtin/tickets.jsonl
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator

ROWS = 400

PRODUCTS = (
    *("kettle", "desk lamp", "backpack", "toaster", "rain jacket", "bookshelf", "headphones", "blender", "tent", "rug"),
    *("office chair", "wall clock", "bicycle pump", "coffee grinder", "yoga mat", "umbrella", "suitcase", "keyboard"),
    *("picture frame", "garden hose", "hair dryer", "sleeping bag", "frying pan", "mirror", "watering can", "scarf"),
)

TOPICS: dict[str, tuple[str, ...]] = {
    "damaged": (
        "the {product} from order {order} arrived with a crack in it.",
        "I opened the box of order {order} and the {product} is broken in two.",
        "my {product} has a deep scratch, and I have only just unpacked it. The order was {order}.",
        "order {order} came today, but the {product} was smashed on the way.",
        "there is a dent in the {product} you sent me (order {order}).",
    ),
    "late": (
        "where is my {product}? Order {order} should have been here last week.",
        "I am still waiting for order {order}, a {product}.",
        "the tracking page of order {order} has not moved for six days, and I have no {product}.",
        "order {order} was promised for Monday. The {product} has not come.",
        "has the {product} of order {order} been sent at all? Nothing has arrived.",
    ),
    "wrong item": (
        "I ordered a {product} (order {order}), and there was something else in the box.",
        "order {order} should have been a {product}, but you sent me another thing.",
        "this is not the {product} I picked. Please check order {order}.",
        "somebody else must have got my {product}; what came with order {order} is not mine.",
        "you mixed up order {order}: it was a {product} in green, and I got it in pink.",
    ),
    "refund": (
        "I sent the {product} back two weeks ago and have not seen my money for order {order}.",
        "please cancel order {order} and pay me back; I no longer need the {product}.",
        "I would like my money back for the {product}, order {order}.",
        "when do I get the refund for order {order}? The {product} is with you since Tuesday.",
        "the {product} does not suit me, so I return it. Please refund order {order}.",
    ),
    "invoice": (
        "could you send me the invoice for the {product}? The order was {order}.",
        "my company needs a bill with its address on it for order {order}, the {product}.",
        "the invoice of order {order} lists the {product} twice.",
        "I cannot find the receipt for my {product}. It was order {order}.",
        "there is a wrong name on the bill for order {order} ({product}).",
    ),
    "advice": (
        "how do I clean the {product}? I bought it with order {order}.",
        "is there a manual for the {product} of order {order}?",
        "can I leave the {product} from order {order} outside in winter?",
        "which spare parts fit the {product}? My order was {order}.",
        "I have put the {product} together, but one screw is left over. It was order {order}.",
    ),
}
"""Ways to say what a message is about."""

GREETINGS = (
    "Hello,",
    "Hi,",
    "Good morning,",
    "Dear team,",
    "Hi there,",
    "Good evening,",
    "Hey,",
    "To whom it may concern,",
)
URGENT = (
    "I need an answer today.",
    "This is urgent, please!",
    "I leave on a trip tomorrow, so please hurry.",
    "It is a birthday present for this evening.",
    "Please call me back within the hour.",
)
CALM = (
    "There is no hurry.",
    "Thank you for your help.",
    "Kind regards, {name}",
    "Have a nice weekend, {name}",
    "Any time next week is fine.",
    "Best wishes from {name}",
)
NAMES = ("Ada", "Bruno", "Chen", "Dalia", "Emeka", "Freya", "Goran", "Hana", "Ivo", "Juno", "Kofi", "Lena")


def tickets(rng: random.Random) -> Iterator[dict[str, str]]:
    """Messages and their tickets, without end; topics come in turn."""
    while True:
        for topic, ways in TOPICS.items():
            product, order, urgent = rng.choice(PRODUCTS), rng.randint(1000, 9999), rng.random() < 0.4
            told = rng.choice(ways).format(product=product, order=order)
            end = rng.choice(URGENT if urgent else CALM).format(name=rng.choice(NAMES))
            ticket = {"topic": topic, "product": product, "order": order, "urgent": urgent}
            message = f"{rng.choice(GREETINGS)} {told} {end}"
            yield {"prompt": f"Write the ticket for this message.\n\n{message}", "response": json.dumps(ticket)}


def main() -> None:
    rows = tickets(random.Random(2024))
    sys.stdout.writelines(json.dumps(next(rows)) + "\n" for _ in range(ROWS))


if __name__ == "__main__":
    main()
