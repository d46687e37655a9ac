"""Tables, plots and reports, made from the summaries of finished runs alone."""
