"""How fast, how large, and the paper's findings made small. Nothing else imports from here.

    sampling     drawing and decoding against what the machine can do
    training     the step of stage 2 as ratios within one run
    full_size    a UniX of the released sizes with random weights: memory, loading, both tasks
    table5       Table 5 and REPA on the phantom, with the joint loop of Table 5
    gpu          micro-steps at real sizes on one GPU
"""
