"""Every family on your data: the measured table."""
