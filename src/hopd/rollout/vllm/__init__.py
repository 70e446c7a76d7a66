"""Samples with vLLM, colocated with the trainer or on servers, from a copy of the student's weights. The room knows no
processes of the run: `WeightSync` decides who sends the weights."""
