"""What a person wants to know of a finished run, as one page that needs nothing but itself.

Reads a run directory and the photos that it names; nothing here trains. `draw.draw_report` and `compare.compare_runs`
are what others call.
"""
