"""What everything that measures cost shares: the clock, the count of arithmetic, the machine's description."""
