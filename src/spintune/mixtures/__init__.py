"""FLAN-style mixtures: tasks declared in YAML, phrasings, exemplars, chain of thought. Nothing here imports torch.

::

    task.yaml + rows --tasks--> Task --rendering--> prompt and target --mixture--> examples with their provenance
"""
