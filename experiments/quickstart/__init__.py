"""Makes the two models that the package ships for its quickstart."""
