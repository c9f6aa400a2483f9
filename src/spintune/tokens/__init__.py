"""Conversations as token rows with an exact loss mask.

``chat`` renders conversations for decoder-only models (``chat_template``, ``layout``, ``plain``) and ``seq2seq`` for
encoder-decoders. ``rows`` holds the rows and fits them into a length, ``rendering`` chooses a renderer, ``cache`` keeps
rows for the next run.
"""
