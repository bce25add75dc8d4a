"""What the training scripts share; the loops themselves are theirs.

    run          Run: joins processes, resumes, updates, saves; skipped steps
    stop         signals, on which all processes agree
    saving       checkpoints, written while training goes on
    resume       which checkpoint a run goes on from, and what it needs besides weights
    log          log.jsonl, boards, throughput
    optim        learning rate, AdamW and Muon, the average of the weights
    batches      which image a step sees and everything random about it; read ahead by threads
    one_gpu      batch and steps from the number of images, for data of one's own
    compiled     torch.compile, one layer at a time
    frozen       frozen matrices in bf16 on a GPU
    lora         fine-tuning by small matrices beside frozen ones
    cost         operations of a step, and what fits where
    memory       bytes of a step at its peak
    peak         how many operations a second the device can do at best
    latents      posteriors of the VAE stored beside the packed images
    blocks       a sample of each kind, block by block: what `python model.py` prints
    show         what the model draws and writes, to look at while it trains
    curves       log.jsonl of several runs in one picture
"""
