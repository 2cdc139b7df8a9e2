"""`c2vl-eval paper`: the tables and figures of the paper over every dataset at hand, its numbers next to ours.

`spec` holds what the paper prints (`numbers.toml`) and which variant of the recipe each line is, `experiments` names the
trainings and evaluations behind every cell, `compute` plans and runs those that lack, `tables` collects numbers,
`figures` draws, `export` writes CSV, Markdown, LaTeX and HTML.
"""
