"""Options and values by the names that other software has for them.

Whoever comes from diffusers, transformers, LLaMA-Factory, nanoGPT, DiT, REPA or Bagel types
`--guidance-scale`, `--learning-rate` or `--bf16`. A script understands such a name if it has the
setting that is meant; a setting of its own that has the same name goes before.
"""
import difflib

# The settings, and what they are called elsewhere. A group is for the scripts that have the setting
# in front of it, because "steps" are those of training in one script and those of a solver in
# another.
SPELLINGS = {
    # everywhere
    "": {
        "out": "output_dir out_dir output",
        "dtype": "mixed_precision precision torch_dtype",
        "workers": "num_workers dataloader_num_workers",
        "threads": "num_threads",
        "data": "data_dir train_data_dir data_path dataset",
        "overwrite": "overwrite_output_dir force",
        "limit": "max_samples",
        "max_tokens": "max_new_tokens max_gen_len",
    },
    # training
    "lr": {
        "lr": "learning_rate base_lr",
        "steps": "max_train_steps max_steps max_iters total_steps",
        "batch_size": "train_batch_size global_batch_size",
        "micro_batch": "micro_batch_size per_device_train_batch_size",
        "warmup": "warmup_steps lr_warmup_steps warmup_iters",
        "decay": "lr_scheduler lr_scheduler_type",
        "optimizer": "optim",
        "weight_decay": "adam_weight_decay",
        "clip": "max_grad_norm grad_clip gradient_clip_val",
        "ema": "ema_decay",
        "recompute": "gradient_checkpointing activation_checkpointing",
        "compile": "torch_compile",
        "save_every": "checkpointing_steps save_steps ckpt_every save_interval",
        "eval_every": "eval_steps validation_steps eval_interval",
        "log_every": "logging_steps log_interval",
        "keep": "checkpoints_total_limit save_total_limit",
        "boards": "report_to log_with",
        "init": "model model_path model_name_or_path pretrained_model_name_or_path",
        "size": "resolution",
        "text_dropout": "cfg_prob text_cond_dropout_prob caption_dropout_rate",
        "repa": "proj_coeff",
        "shift": "timestep_shift time_shift",
    },
    # drawing
    "cfg": {
        "cfg": "guidance_scale cfg_scale cfg_text_scale cfg_weight",
        "steps": "num_inference_steps num_sampling_steps num_steps num_timesteps",
        "solver": "scheduler sampler sampling_method",
        "shift": "timestep_shift time_shift flow_shift",
        "renorm": "cfg_renorm_type",
        "size": "image_size resolution",
    },
    # whatever computes with a trained model
    "checkpoint": {
        "checkpoint": "model model_path model_name_or_path pretrained_model_name_or_path ckpt",
        "batch": "batch_size eval_batch_size",
    },
    # sample.py
    "report": {
        "report": "caption text",
        "reports": "prompts prompt_file",
        "num": "num_images num_images_per_prompt num_samples n_samples",
        "image": "images image_path image_dir",
        "prompt": "question instruction",
    },
}

# options that stand for a value of a setting
FLAGS = {
    "bf16": ("dtype", "bfloat16"), "fp16": ("dtype", "float16"), "fp32": ("dtype", "float32"),
}

# setting -> a value as it is written elsewhere: ours
VALUES = {
    "dtype": {
        "bf16": "bfloat16", "fp16": "float16", "half": "float16", "fp32": "float32",
        "float": "float32", "no": "float32", "torch.bfloat16": "bfloat16",
        "torch.float16": "float16", "torch.float32": "float32",
    },
    "device": {"gpu": "cuda"},
    "decay": {"constant_with_warmup": "constant"},
    "optimizer": {"adamw_torch": "adamw", "adamw_torch_fused": "adamw"},
    "boards": {"none": ""},
}

# what no setting stands for, but some do together: (the setting that a script must have, the names,
# what to do)
INSTEAD = (
    ("micro_batch", "gradient_accumulation_steps gradient_accumulation grad_accum accumulate",
     "accumulation follows from two others: --batch-size is what a step takes in all, that is "
     "--micro-batch times processes times accumulation"),
    ("lr", "num_train_epochs epochs num_epochs max_epochs",
     "training is counted in steps: --steps is epochs times images divided by --batch-size"),
    ("lr", "resume resume_from_checkpoint resume_from auto_resume",
     "a run goes on by itself when the same command is given again; --init starts from weights"),
    ("cfg", "height width", "pictures are square: --size is pixels a side"),
    ("cfg", "negative_prompt", "guidance is away from no report; how far says --cfg"),
    ("temperature", "do_sample", "--temperature above 0 draws tokens, 0 takes the most likely"),
    ("temperature", "top_k num_beams", "tokens are chosen by --temperature and --top-p alone"),
)


def others(types):
    """The other names that a script understands -> {name: its setting}. types: {setting: type}."""
    names = {}
    for needed, group in SPELLINGS.items():
        if needed and needed not in types:
            continue
        for setting, spellings in group.items():
            if setting in types:
                names |= dict.fromkeys(spellings.split(), setting)
    return {name: setting for name, setting in names.items() if name not in types}


def translated(words, types):
    """The words of a command line with our names of options instead of those of others."""
    names = others(types)
    words = list(words)
    ours = []
    while words:
        word = words.pop(0)
        name, equals, value = word.partition("=")
        key = name.removeprefix("--").replace("-", "_")
        setting, meant = FLAGS.get(key, ("", ""))
        if not name.startswith("--") or key in types:
            ours.append(word)
        elif key in names:
            ours.append(f"--{names[key]}{equals}{value}")
        elif key.startswith("no_") and key[3:] in names:
            ours.append(f"--no_{names[key[3:]]}{equals}{value}")
        elif setting in types:
            # --bf16 True is understood; False says what is not meant, but not what is
            truth = value if equals else "true"
            if not equals and words and words[0].lower() in ("true", "false"):
                truth = words.pop(0)
            ours.append(f"--{setting}={meant}" if truth.lower() == "true" else name)
        else:
            ours.append(word)
    return ours


def about_unknown(key, types):
    """What to say of an option that a script does not have: what to do instead, or the nearest that
    it has, if there is one."""
    for needed, names, instead in INSTEAD:
        if needed in types and key in names.split():
            return instead
    # one wrong letter, or two in a long name: what is found farther away has little to do with what
    # was meant, above all among the long names of others
    names = others(types)
    found = difflib.get_close_matches(key, types, n=1, cutoff=0.65 if len(key) < 5 else 0.76)
    found += difflib.get_close_matches(key, names, n=1, cutoff=0.88)
    if not found:
        return "--help lists all"
    setting = names.get(found[0], found[0])
    return f"the nearest is --{setting.replace('_', '-')}"
