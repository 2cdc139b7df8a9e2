"""`c2vl-eval paper`: the tables and figures of the paper over every dataset that is there, its numbers beside ours.

`tables` knows what the paper prints (`numbers.toml`) and which variant of the recipe each line is, `sets` finds the
datasets, `cells` computes and keeps what the lines ask for, `plan` says before what is to do, `figures` draws, `write`
makes CSV, Markdown, LaTeX and HTML.
"""
