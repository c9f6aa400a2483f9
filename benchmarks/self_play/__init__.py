"""Where does self-play help? Small checkable worlds, a real model, and rivals at equal compute."""
