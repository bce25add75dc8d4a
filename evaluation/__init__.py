"""The numbers of the paper's tables; evaluate.py says which there are.

    und, gen, phantom, compare     one table each
    features, image_metrics        features of images, and FD, KD, precision, recall, density, coverage over them
    text_metrics, chexbert, radgraph_biovil     metrics of reports, and the networks of others that they need
    scoring, tables, worklist      scores with intervals, tables and plots, work shared out over processes
"""
