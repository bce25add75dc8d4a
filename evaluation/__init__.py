"""The numbers of the paper's tables; evaluate.py says which there are.

    und, gen, phantom      Table 2; Tables 3 and 4; the phantom's own scores
    utility                does it help to train on drawn images?
    places                 does a statement's heat lie on its finding?
    match                  reports that do not belong to their films, and whether that is found out
    compare, privacy       other people's models from their files; is a training image too near?
    paired, runs           two systems side by side with p values; two runs of und, or of gen
    edits, severity        one finding of a phantom changed; does a finding grow with its word?
    reading, drawing       the hours of und and gen: reports of many images, images of many reports
    scoring, tables        lists to numbers with intervals; numbers to JSON, Markdown and plots
    settings               groups of settings that several tables share
    features, image_metrics    features of images, and FD, KD, precision, recall, density, coverage
    text_metrics, chexbert, radgraph_biovil    metrics of reports, and other people's networks
"""
