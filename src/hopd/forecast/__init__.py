"""Says before a run whether it can work, what it will cost, and how much memory it takes. Nothing stays trained."""
