"""What a run takes before it is paid for: rows and steps, memory, arithmetic, time and disk."""
