"""The native engine decodes with the student's own weights, in the process that trains them. The room knows no servers
and no recipe beyond its `Sampling`."""
