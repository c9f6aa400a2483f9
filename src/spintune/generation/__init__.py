"""Text generation: continuous batching with a preallocated key-value cache, sampling, stopping.

``protocol`` says what a generator guarantees, ``build`` chooses one, ``batch`` schedules sequences that ``decoder`` and
``encoder_decoder`` compute, ``plain`` writes one answer at a time, ``local_teacher`` answers a teacher's requests.
"""
