"""Top floor: everything that runs. The graph, the Prefect flows, the command line, the report."""
