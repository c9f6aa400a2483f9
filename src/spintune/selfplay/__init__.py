"""SPIN: the opponent's answers, and the iterations that learn from them."""
