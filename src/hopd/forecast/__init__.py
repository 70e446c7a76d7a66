"""Says before the work what it will be: whether a run can work, what it costs, how much memory it takes."""
