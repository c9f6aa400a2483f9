"""How good models are, and which of two is better.

- scored answers: ``heldout`` (likelihood and greedy answers), ``ifeval`` (verifiable instructions), ``answers`` (files
  of answers), ``generate_answers``; the metrics themselves are in :mod:`spintune.metrics`
- benchmarks: ``harness``, ``harness_model``, ``harness_results`` (lm-evaluation-harness), ``custom_tasks`` (one's own)
- a model as judge: ``judge`` (pairs), ``rating`` (MT-Bench), ``judge_prompts``, ``verdicts``
- statistics: ``scores`` (per item, as stored), ``statistics`` (tests and intervals), ``contenders`` (what to compare),
  ``comparison`` (all measures together), ``model_pairs`` (which models of a run are compared)
"""
