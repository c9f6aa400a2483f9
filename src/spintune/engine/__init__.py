"""The engine: log-probabilities of responses given their prompts, over packed rows.

``query`` says what is asked and answered, ``logprobs`` is the engine, ``decoder`` and ``encoder_decoder`` run a model's
layers over packed rows (``attention``, ``packing``, ``varlen``), ``head`` turns hidden states into log-probabilities.
"""
