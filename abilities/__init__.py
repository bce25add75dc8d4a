"""What only a model that both reads and draws can do. Nothing here is part of the network.

    table        a data set out of a table of reports: python sample.py --table
    templates    labels of a table -> the text of a report
    likelihood   how likely a report is, word by word, with the picture and without
    explain      where a statement is in the picture: python sample.py --explain
    match        do a report and a film belong together? how likely is a finding?
    edit         change one finding of a picture: python sample.py --edit
    wording      one statement put into a report, in place of what it said about that finding
    grid         reports that differ in a word, drawn from the same noise
"""
