"""IFEval: verifiable instructions, checked by rules, without a judge and the same on every run."""
