"""`c2vl-eval paper`: the tables and figures of the paper over every dataset that is there, its numbers beside ours.

`tables` knows what the paper prints (`numbers.toml`) and which variant of the recipe each line is, `sets` finds the
datasets, `lab` knows the cells and where they are kept, `cells` computes what they lack, `plan` says before what is to
do, `figures` draws, `sheets` collects the tables, `write` makes CSV, Markdown, LaTeX and HTML.
"""
