"""How fast, how large, and the paper's findings made small. Nothing else imports from here.

    measuring    what the next three share: calls that take turns, a large matrix product
    sampling     drawing and decoding against what the machine can do; few-step solvers
    training     the step of stage 2 as ratios within one run
    full_size    a UniX of the released sizes with random weights: memory, loading, both tasks
    int8         what weights in 8-bit integers change, and how fast they are
    synthetic    whether pictures drawn from a table of phantom reports show what was asked for
    gpu          micro-steps at real sizes on one GPU
    paper        the same on paper: kernels, bytes and their price, without a GPU
    mimic        what prepare_mimic.py costs, on generated data
    metrics      the metrics of images beside the packages that the official code calls
    table5       Table 5's rows: reading and drawing trained together, a loop of its own
    replication  the paper's two findings about training, made again small on the phantom
"""
