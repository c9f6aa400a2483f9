"""FLAN-style mixtures: many tasks in many phrasings, with exemplars and chains of thought. Nothing here needs torch.

::

    task.yaml + rows --tasks--> MixtureTask --shares, interleaving--> task of each position
                                     |                                    |
                                     +---------- mixture, rendering ------+--> prompts and targets, with provenance
"""
