"""Command lines and recipes of the impatient: what is refused, in which words, and what is not."""

import importlib
import sys
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

import pytest

from magicdistill.platform.config.recipe import load_recipe
from magicdistill.platform.config.validation import RecipeError
from magicdistill.platform.launch.cli import parse_arguments
from magicdistill.platform.planning.preflight import demand_trainable, demand_weights

METHODS = "cfg-distill, dmd, dmd2, euler, finetune, lcm, magic, magic-gt, vae"
GENERATOR = "--schedule.optimizers.generator"
CRITIC = "--schedule.optimizers.critic"
LONG = "n" * 300

REFUSED_COMMANDS = {
    "distill": {
        "portrait-tiny-smoke": "is it --recipe portrait-tiny-smoke?",
        "--recipe": "--recipe takes NAME|FILE",
        "--recipe portrait-tny": "did you mean portrait-tiny?",
        "--recipe portrait-tiny-data": "is for jobs/curate.py",
        "--recipe portrait-tiny-teacher": "is for jobs/finetune.py",
        "--recipe vfhq": "is a protocol, for jobs/evaluate.py --protocol vfhq",
        "--recipe none.yaml": "no recipe 'none.yaml'",
        "--recipe magic141-4step-8xh100 --kernels.recompute_blocks false": "recompute_blocks true",
        "--resume none": "no run 'none'",
        "--resume latest --recipe portrait-tiny": "leave --recipe out",
        "--nope": "unknown flag --nope",
        "--schedule.num_cycle 3": "did you mean --schedule.num_cycles?",
        "--method.alpha_weka 0.5": "did you mean --method.alpha_weak?",
        "--health.drift.most 2": "it is --health.drift.max now",
        "--method.name nope": f"--method.name nope: choose one of {METHODS}",
        "--method.name": "--method.name: give a value",
        "--engine.kind fast": "--engine.kind fast: choose one of deepspeed, torch",
        "--engine.precision fp16": "choose one of bf16, fp32",
        "--engine.zero_stage 4": "choose one of 0, 1, 2, 3",
        "--kernels.attention best": "choose one of flash, flash3, sdpa",
        "--cluster.gpu h300": "choose one of a100, b200, h100, h200",
        "--evaluation.scored_by me": "choose one of actor, workers",
        "--evaluation.real mine": "choose one of decoded, originals",
        "--health.action panic": "choose one of keep-best, off, stop",
        "--method.sampler.name ddim": "choose one of consistency, euler",
        "--method.ground_truth l1": "choose one of dmd, huber, mse",
        "--data.flip yes": "--data.flip yes: choose one of false, true",
        "--data.flip": "--data.flip takes",
        "--seed": "--seed takes INT",
        "--seed one": "--seed takes INT",
        "--seed 1.5": "--seed takes INT",
        "--seed 1e3": "--seed takes INT",
        f"--seed {2**63}": "--seed: 9223372036854775808: Input should be less than",
        "--schedule.num_cycles 0": "--schedule.num_cycles: 0: Input should be greater than 0",
        "--schedule.num_cycles -5": "--schedule.num_cycles: -5: Input should be greater than 0",
        "--schedule.num_cycles 10": "method.warmup_cycles 10: the run has 10 cycles",
        "--schedule.num_cycles ten": "--schedule.num_cycles takes INT",
        "--schedule.batch_size 7": "schedule.batch_size 7 does not divide over 2 groups",
        "--schedule.batch_size 2 --schedule.num_micro_batches 2": "choose a multiple of 4",
        "--schedule.num_micro_batches 3": "3 micro-batches",
        "--cluster.num_workers 3": "schedule.batch_size 8 does not divide over 3 groups",
        "--cluster.num_workers 0": "--cluster.num_workers: 0",
        "--cluster.num_workers 3 --cluster.sequence_parallel 2": "choose a multiple of that",
        "--cluster.sequence_parallel 3": "4 attention heads do not divide",
        "--cluster.num_workers 16 --schedule.batch_size 16": "are 16 processes; give at least 16",
        "--data.num_readers 7": "are 9 processes",
        "--cluster.gpus_per_worker 1.5": "give 2 or at most 1",
        "--cluster.gpus_per_worker nan": "finite number",
        "--cluster.gpus_per_worker -1": "greater than or equal to 0",
        f"{GENERATOR}.lr -1": f"{GENERATOR}.lr: -1.0: Input should be greater than 0",
        f"{GENERATOR}.lr 0": "greater than 0",
        f"{GENERATOR}.lr nan": f"{GENERATOR}.lr: nan: Input should be a finite number",
        f"{GENERATOR}.lr inf": "finite number",
        f"{GENERATOR}.lr fast": f"{GENERATOR}.lr takes FLOAT",
        f"{GENERATOR}.final_lr 1": "final_lr 1 is above lr 0.0001: give at most lr",
        f"{CRITIC}.final_lr 1e-4": "final_lr 0.0001: the rate does not fall; give decay 1 too",
        f"{GENERATOR}.betas 0.9 1": "betas.1: 1.0: Input should be less than 1",
        f"{GENERATOR}.betas 0.9": f"{GENERATOR}.betas takes FLOAT FLOAT",
        f"{GENERATOR}.decay 2": "less than or equal to 1",
        f"{GENERATOR}.decay 0": "greater than 0",
        f"{GENERATOR}.decay 0.5": "the rate is 0 after 40 of 80 updates; give",
        f"{GENERATOR}.decay_steps 40": "the rate is 0 after 40 of 80 updates; give",
        f"{GENERATOR}.decay_steps 80 --schedule.num_cycles 200": f"{GENERATOR}.decay 1",
        f"{CRITIC}.decay_steps 80": "the rate is 0 after 80 of 400 updates",
        f"{GENERATOR}.clip_norm 0": "greater than 0",
        "--schedule.optimizers.actor.lr 1": "unknown flag --schedule.optimizers.actor.lr",
        "--schedule.ema_decay 1": "less than 1",
        "--health.best_by fdd": "health.best_by fdd: no such metric; choose one of score_gap",
        "--health.drift.min 2 --health.drift.max 1": "--health.drift: min 2 is above max 1",
        "--method.score_sigma.min 0.9 --method.score_sigma.max 0.1": "min 0.9 is above max 0.1",
        "--method.alpha_weak 1.5": "less than or equal to 1",
        "--method.alpha_weak 0.9 --method.alpha_strong 0.5": "alpha_weak 0.9 is above alpha_strong",
        "--method.sampler.num_steps 0": "greater than or equal to 1",
        "--method.sampler.shift nan": "finite number",
        "--method.warmup_cycles 80": "would never update the generator; give at most 79",
        "--method.lora.rank 0": "greater than or equal to 1",
        "--method.lora.rank 129": "method.lora.rank 129: the network is 128 wide",
        "--method.lora.targets conv": "method.lora.targets 'conv': names no linear",
        "--method.lora.targets [": "no regular expression",
        "--model.preset tiny": "there are portrait-tiny, nano, magic141-13b",
        "--model.preset magic141-13b": "data.null_text.token_dim 64: model.preset magic141-13b",
        "--model.vae null": "model.vae: null: magic-gt trains on latents",
        "--model.vae nowhere": "model.vae: no weights",
        "--model.vae assets/portrait-tiny/teacher": "give a folder of AutoencoderKLHunyuanVideo",
        "--model.teacher nowhere": "model.teacher: no weights",
        "--model.teacher assets/portrait-tiny/vae": "model.teacher: assets/portrait-tiny/vae holds",
        "--model.generator assets/portrait-tiny/vae": "give a transformer",
        "--recipe portrait-tiny-1step --pairs.generator nowhere": "pairs.generator: no weights",
        "--evaluation.networks nowhere": "evaluation.networks: there is no folder nowhere",
        "--data.bucket.height 12": "--data.bucket.height: 12: Input should be a multiple of 8",
        "--data.bucket.height 0": "greater than or equal to 8",
        "--data.bucket.height 72": "data.bucket 17x72x64@24: 72 pixels are no whole patches",
        "--data.bucket.num_frames 16": "num_frames 16: give 4k+1, such as 17",
        "--data.bucket.num_frames 9": "evaluation.data.bucket 17x64x64@24: the training has 9x64",
        "--evaluation.data.bucket.fps 12": "the training has 17x64x64@24; give the same",
        "--data.bucket.fps inf": "finite number",
        "--evaluation.columns fdd": "no metric fdd; there are i2v_subject",
        "--data.policy.max_motion_px 0.01": "min_motion_px 0.02 is above max_motion_px 0.01",
        "--name ../x": "it names a folder inside that of the runs",
        "--name /tmp/x": "it names a folder inside that of the runs",
        "--name a/b": "it names a folder inside that of the runs",
        "--name .hidden": "begin with a letter or a digit",
        "--name=": "begin with a letter or a digit",
        f"--name {LONG}": "300 letters are too long",
        "--tracking.experiment=": "at least 1 character",
        "--kernels.attention flash": "kernels.attention flash: it computes bf16 on GPUs",
        "--engine.offload_parameters true": "offload_parameters needs zero_stage 3",
        "--plugins no_such_module": "cannot import 'no_such_module'",
        "--save_pairs": "--save_pairs takes DIR",
        "--help methode": "did you mean method?",
    },
    "finetune": {
        "--recipe portrait-tiny": "portrait-tiny is for jobs/distill.py",
        f"{GENERATOR}.decay 0.1": "the rate is 0 after 1500 of 15000 updates",
        "--method.uniform_share 2": "less than or equal to 1",
    },
    "train_vae": {
        "--recipe portrait-tiny": "portrait-tiny is for jobs/distill.py",
        "--schedule.batch_size 0": "greater than 0",
        "--method.latent_noise -1": "greater than or equal to 0",
        "--schedule.optimizers.decoder.decay 0.5": "the rate is 0 after 900 of 1800 updates",
    },
    "plan": {
        "--mfu 2": "mfu 2.0: it is a share of the peak",
        "--mfu nan": "mfu nan: it is a share of the peak",
        "--mfu 0.4 --rates file.json": "give one of --mfu and --rates",
        "--recipe portrait-tiny-data": "is for jobs/curate.py",
        "--cluster.num_workers 41": "does not divide into groups",
        "--cluster.sequence_parallel 7": "24 attention heads do not divide",
    },
    "curate": {
        "--stage nope": "choose one of all, decide, encode, ingest, null, score",
        "--repair": "--repair goes with --verify",
        "--data.num_actors 0": "--data.num_actors: 0",
        "--data.policy.limits.portrait.text.aera.max 1": "limits name scores",
        "--data.policy.max_hash_bits 33": "less than or equal to 32",
        "--data.decoder.timeout_s inf": "finite number",
        "--data.encoding.num_gpus_per_actor 2.5": "give 2 or at most 1",
    },
    "evaluate": {
        "": "give --model",
        "--model none": "no weights",
        "--protocol vfq": "did you mean vfhq?",
        "--report none": "no run 'none'",
        "--evaluation.num_clips 0": "greater than 0",
        "--recipe magic141-lcm-x": "no recipe",
    },
    "compare": {
        "--recipe portrait-tiny": "portrait-tiny is for jobs/distill.py",
        "--recipe none": "no recipe 'none'",
        "--only magik --dry_run": "did you mean magic?",
        "--seeds one": "--seeds takes",
        "--dry": "unknown flag --dry",
    },
    "export": {
        "": "give",
        "latest": "give --to",
        "latest --to out --dtype fp8": "choose one of bf16, fp16, fp32, int8",
        "none --to out": "none",
    },
    "schedule": {
        "--cron * -- jobs/curate.py": "",
        "--once": "give the job after --",
        "-- jobs/curate.py": "give one of --cron and --once",
        "--once --max_runs 0 -- jobs/curate.py": "give at least 1",
        "--once --env A -- jobs/curate.py": "--env A: give NAME=VALUE",
        "--once --name a/b -- jobs/curate.py": "use letters",
        "--once --catch_up --skip_missed -- jobs/curate.py": "give one of --catch-up",
    },
    "sample": {
        "": "give either --image or --prompt",
        "--image a.png": "give --out",
        "--steps four": "--steps takes",
        "--size 17 64": "--size takes",
        "--nope": "unknown flag --nope",
    },
    "track": {"none": "no run 'none'", "--nope": "unknown flag --nope"},
}
"""What a sentence must contain, by the command line of each job."""

ACCEPTED_COMMANDS = {
    "distill": [
        "",
        "--recipe portrait-tiny-smoke",
        "--schedule.num_cycles 200 --seed 1",
        "--seed -3",
        "--seed=4",
        "--method.name magic --method.name dmd2",
        "--method.name=lcm --method.name magic-gt --method.alpha_weak 0",
        "--engine.kind torch --engine.kind deepspeed --engine.zero_stage 1",
        "--seed 1 --seed 2",
        "--data.flip true --data.flip false",
        "--schedule.num-cycles 100",
        "--schedule.ema_decay null",
        f"{GENERATOR}.betas 0 0.5",
        f"{GENERATOR}.decay null",
        f"{GENERATOR}.decay_steps 200",
        f"{GENERATOR}.decay 0.5 {GENERATOR}.final_lr 1e-6",
        "--health.best_by fvd",
        "--health.drift.max null",
        "--cluster.num_workers 4 --cluster.sequence_parallel 2",
        "--cluster.num_workers 1 --schedule.batch_size 1",
        "--method.lora.rank 128",
        r"--method.lora.targets single_transformer_blocks\.0\.proj_mlp",
        "--model.generator assets/portrait-tiny/student-4step",
        "--name mine --runs elsewhere",
        "--name größer_2.0",
        "--recipe magic141-4step-8xh100",
        "--recipe magic141-4step-40xh100",
        "--recipe magic141-1step-16xh100",
        "--recipe magic141-cfg-dmd2",
        "--recipe magic141-lcm",
    ],
    "finetune": ["", "--recipe magic141-finetune", "--model.teacher null"],
    "train_vae": ["", "--schedule.num_cycles 5"],
    "curate": ["", "--stage score", "--recipe nightly", "--recipe portrait-tiny"],
    "evaluate": ["--protocol vfhq --recipe magic141-4step-8xh100", "--evaluation.num_samples 2"],
    "plan": ["--recipe portrait-tiny"],
    "compare": ["--recipe portrait-tiny-compare --only magic --seeds 0 1 --seeds 2"],
    "export": ["latest --to out", "--dtype fp32 latest --to out --dtype bf16"],
    "schedule": ["--cron '0 3 * * *' --timezone UTC --env A=b"],
    "sample": ["--image a.png --out b.mp4 --steps 1 --steps 4", "--serve --port 0"],
    "track": ["", "latest --uri http://127.0.0.1:1"],
}

REFUSED_RECIPES = {
    "seed: 1\nseed: 2": "line 3: seed is given already in line 2",
    "schedule: {num_cycles: 20, num_cycles: 30}": "num_cycles is given already in line 2",
    "schedule: {num_cycles: 20}\nschedule: {num_cycles: 30}": "schedule is given already",
    "data: {flip: yes}": "yes is a boolean in YAML: write true or false",
    "data: {flip: No}": "No is a boolean in YAML",
    "data: {flip: on}": "on is a boolean in YAML",
    "data: {flip: OFF}": "OFF is a boolean in YAML",
    "data: {flip: 'yes'}": "data.flip: 'yes': give true or false",
    "data: {flip: 1}": "data.flip: 1: give true or false",
    "data: {flip: null}": "data.flip: None: Input should be a valid boolean",
    "name: on": "or quote a text",
    "seed: 010": "010 is no decimal number",
    "seed: 1:30": "1:30 is no decimal number",
    "seed: 0b11": "0b11 is no decimal number",
    "schedule: {ema_decay: 1:30.5}": "1:30.5 is a number to the base of 60",
    "name: 2026-01-31": "2026-01-31 is a date in YAML",
    "seed: true": "seed: True: give a number",
    "schedule: {num_cycles: true}": "schedule.num_cycles: True: give a number",
    "method: {sampler: {shift: false}}": "method.sampler.shift: False: give a number",
    "engine: {zero_stage: true}": "give a number",
    "schedule: {optimizers: {critic: {betas: [true, 0.9]}}}": "give a number",
    "schedule: {num_cycles: 20.5}": "schedule.num_cycles: 20.5",
    "schedule: {num_cycles: many}": "schedule.num_cycles: 'many': Input should be a valid integer",
    "schedule: {num_cycles: null}": "schedule.num_cycles: None",
    "schedule: {num_cycles: [20]}": "schedule.num_cycles: [20]",
    "schedule: {num_cycles: .inf}": "schedule.num_cycles: inf",
    "schedule: {num_cycels: 20}": "did you mean schedule.num_cycles?",
    "schedule: null": "schedule: None",
    "schedule: 80": "schedule: 80",
    "cycles: 20": "unknown key cycles",
    "zzz: 1": "unknown key zzz; leave it out",
    "1: 2": "1",
    "method: nope": "a method is a mapping with the key name",
    "method: {name: nope}": "method.name: 'nope' is no method; there are vae, finetune",
    "method: {name: null}": "method.name: None is no method",
    "method: {name: dmd, alpha_weak: 0.5}": "dmd has no alpha_weak; use method.name magic",
    "method: {name: dmd2, ground_truth: mse}": "use method.name magic-gt",
    "method: {lora: {rank: 0}}": "method.lora.rank: 0",
    "method: {lora: {rank: 200}}": "method.lora.rank 200: the network is 128 wide",
    "method: {lora: {targets: []}}": "lora.targets: empty",
    "method: {lora: {targets: to_q}}": "method.lora.targets: 'to_q'",
    "method: {lora: {targets: [to_q]}}": "method.lora.targets 'to_q': names no linear",
    "method: {lora: {targets: ['(']}}": "no regular expression",
    "method: {warmup_cycles: 80}": "would never update the generator; give at most 79",
    "method: {warmup_cycles: -1}": "method.warmup_cycles: -1",
    "method: {num_fake_updates: 0}": "method.num_fake_updates: 0",
    "method: {score_sigma: {min: 0.9, max: 0.1}}": "method.score_sigma: min 0.9 is above max 0.1",
    "method: {score_sigma: {max: 1.1}}": "method.score_sigma.max: 1.1",
    "method: {score_sigma: {low: 0.1}}": "it is method.score_sigma.min now",
    "method: {cfg_distillation: {guidance: {min: 9, max: 8}}}": "min 9 is above max 8",
    "method: {cfg_distillation: {weight: .nan}}": "method.cfg_distillation.weight: nan",
    "method: {pairs: {num_cycles: 5}}": "they need sampler.num_steps 1",
    "method: {alpha_weak: 0.8, alpha_strong: 0.4}": "alpha_weak 0.8 is above alpha_strong 0.4",
    "method: {real_guidance: .inf}": "method.real_guidance: inf",
    "method: {name: lcm, teacher: {name: consistency}}": "the teacher's step is euler's",
    "method: {name: lcm, huber_c: 0}": "method.huber_c: 0",
    "pairs: {generator: x}": "give both or none",
    "schedule: {optimizers: {critic: null}}": "schedule.optimizers.critic: None",
    "schedule: {optimizers: {critc: {lr: 1}}}": "did you mean critic?",
    "schedule: {optimizers: {critic: {rl: 1}}}": "did you mean schedule.optimizers.critic.lr?",
    "schedule: {optimizers: {critic: {lr: 0}}}": "schedule.optimizers.critic.lr: 0",
    "schedule: {optimizers: {critic: {lr: .nan}}}": "finite number",
    "schedule: {optimizers: {critic: {lr: -.inf}}}": "finite number",
    "schedule: {optimizers: {critic: {lr: 1, final_lr: 2}}}": "final_lr 2 is above lr 1",
    "schedule: {optimizers: {critic: {betas: [1, 0.9]}}}": "critic.betas.0: 1: Input should be",
    "schedule: {optimizers: {critic: {betas: [-0.1, 0.9]}}}": "greater than or equal to 0",
    "schedule: {optimizers: {critic: {betas: [0.9]}}}": "schedule.optimizers.critic.betas",
    "schedule: {optimizers: {critic: {betas: [0, 0, 0]}}}": "schedule.optimizers.critic.betas",
    "schedule: {optimizers: {critic: {eps: 0}}}": "schedule.optimizers.critic.eps: 0",
    "schedule: {optimizers: {critic: {eps: .inf}}}": "finite number",
    "schedule: {optimizers: {critic: {weight_decay: -1}}}": "critic.weight_decay: -1",
    "schedule: {optimizers: {critic: {weight_decay: .nan}}}": "finite number",
    "schedule: {optimizers: {critic: {warmup_steps: -1}}}": "critic.warmup_steps: -1",
    "schedule: {optimizers: {critic: {decay: 0}}}": "critic.decay: 0",
    "schedule: {optimizers: {critic: {decay: 1.5}}}": "critic.decay: 1.5",
    "schedule: {optimizers: {critic: {decay: 0.5}}}": "the rate is 0 after 200 of 400 updates",
    "schedule: {optimizers: {critic: {decay_steps: 399}}}": "the rate is 0 after 399 of 400",
    "schedule: {optimizers: {critic: {decay_steps: 0}}}": "critic.decay_steps: 0",
    "schedule: {optimizers: {critic: {final_lr: 1.0e-5}}}": "the rate does not fall",
    "schedule: {optimizers: {generator: {decay_steps: 60}}}": "the rate is 0 after 60 of 80",
    "schedule: {optimizers: {critic: {clip_norm: 0}}}": "critic.clip_norm: 0",
    "schedule: {optimizers: {critic: {clip_norm: .inf}}}": "finite number",
    "method: {name: vae}": "schedule.optimizers.decoder is missing: vae trains it; give lr",
    "schedule: {ema_decay: 0}": "schedule.ema_decay: 0",
    "schedule: {ema_decay: 1}": "schedule.ema_decay: 1",
    "schedule: {batch_size: 9}": "schedule.batch_size 9 does not divide over 2 groups",
    "schedule: {batch_size: 0}": "schedule.batch_size: 0",
    "schedule: {num_micro_batches: 5}": "x 5 micro-batches: choose a multiple of 10",
    "schedule: {checkpoint_every: 0}": "schedule.checkpoint_every: 0",
    "schedule: {keep_checkpoints: 0}": "schedule.keep_checkpoints: 0",
    "schedule: {sample_every: 0}": "schedule.sample_every: 0",
    "cluster: {num_workers: 5}": "does not divide over 5 groups",
    "cluster: {num_workers: 3, sequence_parallel: 2}": "does not divide into groups",
    "cluster: {sequence_parallel: 0}": "cluster.sequence_parallel: 0",
    "cluster: {sequence_parallel: 3, num_workers: 3}": "4 attention heads do not divide over",
    "cluster: {gpus_per_worker: 2.5}": "give 2 or at most 1",
    "cluster: {gpus_per_worker: .inf}": "finite number",
    "cluster: {max_failures: -1}": "cluster.max_failures: -1",
    "cluster: {logical_cpus: 1}": "cluster.logical_cpus 1: workers, readers",
    "cluster: {threads_per_worker: 0}": "cluster.threads_per_worker: 0",
    "cluster: {gpu: rtx}": "cluster.gpu: 'rtx': Input should be 'a100', 'h100', 'h200' or 'b200'",
    "cluster: {dashboard: 0}": "cluster.dashboard: 0: give true or false",
    "engine: {kind: jax}": "engine.kind: 'jax' is no engine; there are deepspeed, torch",
    "engine: {zero_stage: 5}": "engine.zero_stage: 5",
    "engine: {precision: fp8}": "Input should be 'fp32' or 'bf16'",
    "engine: {kind: torch, zero_stage: 2}": "unknown key engine.zero_stage",
    "engine: {offload_parameters: true}": "offload_parameters needs zero_stage 3",
    "kernels: {attention: flash}": "it computes bf16 on GPUs, and this is fp32 on CPUs; give sdpa",
    "kernels: {attention: magic}": "Input should be 'sdpa', 'flash' or 'flash3'",
    "model: {preset: huge}": "there are portrait-tiny, nano, magic141-13b",
    "model: {preset: magic141-13b}": "takes 4096; give that",
    "model: {preset: 13}": "model.preset: 13",
    "model: {vae: null}": "model.vae: null",
    "model: {vae: ''}": "model.vae",
    "model: {vae: nowhere}": "model.vae: no weights",
    "model: {vae: assets/portrait-tiny/student-4step}": "not supported as a vae",
    "model: {teacher: nowhere}": "model.teacher: no weights",
    "model: {teacher: assets/portrait-tiny/vae}": "which is of no registered backbone",
    "model: {generator: nowhere}": "model.generator: no weights",
    "model: {generator: assets/portrait-tiny/vae}": "holds a AutoencoderKLHunyuanVideo",
    "data: {prompts: {encoder: nowhere}}": "data.prompts.encoder: there is no folder nowhere",
    "data: {prompts: {encoder: assets, drop: 2}}": "data.prompts.drop: 2",
    "data: {sources: []}": "data.sources",
    "data: {sources: [{kind: nope}]}": "is no source; there are",
    "data: {sources: [{kind: portrait-world, num_clips: 0}]}": "data.sources.0.num_clips: 0",
    "data: {sources: portrait-world}": "data.sources",
    "data: {bucket: {num_frames: 0}}": "data.bucket.num_frames: 0",
    "data: {bucket: {num_frames: 18}}": "num_frames 18: give 4k+1, such as 17",
    "data: {bucket: {num_frames: 5}}": "evaluation.data.bucket 17x64x64@24: the training has 5x64",
    "data: {bucket: {height: -64}}": "data.bucket.height: -64",
    "data: {bucket: {height: 65}}": "data.bucket.height: 65: Input should be a multiple of 8",
    "data: {bucket: {width: 72}}": "72 pixels are no whole patches; choose a multiple of 16",
    "data: {bucket: {fps: 0}}": "data.bucket.fps: 0",
    "data: {bucket: {fps: .nan}}": "data.bucket.fps: nan: Input should be a finite number",
    "data: {other_buckets: [{height: 64, width: 64}]}": "gets no clips",
    "data: {null_text: {token_dim: 63}}": "data.null_text.token_dim 63: model.preset portrait-tiny",
    "data: {null_text: {pooled_dim: 65}}": "data.null_text.pooled_dim 65",
    "data: {windows_per_clip: 0}": "data.windows_per_clip: 0",
    "data: {num_readers: -1}": "data.num_readers: -1",
    "data: {num_readers: 100}": "are 102 processes",
    "data: {mixture_weights: {portrait: 0}}": "data.mixture_weights.portrait: 0",
    "data: {mixture_weights: {cats: 1}}": "data.mixture_weights",
    "data: {policy: {min_short_side: -1}}": "data.policy.min_short_side: -1",
    "data: {policy: {min_frames: 0}}": "data.policy.min_frames: 0",
    "data: {policy: {min_motion_px: 20}}": "min_motion_px 20 is above max_motion_px 12",
    "data: {policy: {limits: {all: {exposure.luma: {min: 9, max: 1}}}}}": "min 9 is above max 1",
    "data: {policy: {limits: {cats: {}}}}": "data.policy.limits",
    "data: {policy: {limits: {all: {text.aera: {}}}}}": "limits name scores",
    "data: {policy: {max_upscale: .inf}}": "finite number",
    "data: {policy: {min_cosine: 1.1}}": "data.policy.min_cosine: 1.1",
    "data: {measures: {motion_fps: .inf}}": "finite number",
    "data: {measures: {num_gpus_per_actor: 1.2}}": "give 1 or at most 1",
    "data: {measures: {scorers: [{kind: blur}, {kind: blur}]}}": "not blur twice",
    "data: {measures: {scorers: [{kind: nope}]}}": "there are",
    "data: {encoding: {compute_dtype: fp16}}": "data.encoding.compute_dtype: 'fp16'",
    "data: {decoder: {timeout_s: 0}}": "data.decoder.timeout_s: 0",
    "evaluation: {data: {bucket: {num_frames: 9}}}": "the training has 17x64x64@24; give the same",
    "evaluation: {data: {bucket: {height: 128}}}": "evaluation.data.bucket 17x128x64@24",
    "evaluation: {data: {bucket: {num_frames: 1}}, num_frames: 17}": "jobs/evaluate.py --protocol",
    "evaluation: {data: {other_buckets: [{width: 128}]}}": "held-out clips have one shape",
    "evaluation: {num_clips: 0}": "evaluation.num_clips: 0",
    "evaluation: {name: ../x}": "it names a folder",
    "evaluation: {actor_gpus: 1.5}": "give 2 or at most 1",
    "evaluation: {columns: [fid, fdd]}": "no metric fdd; there are i2v_subject",
    "evaluation: {networks: nowhere}": "evaluation.networks: there is no folder nowhere",
    "evaluation: {teacher: {num_steps: 0}}": "evaluation.teacher.num_steps: 0",
    "evaluation: {teacher: {guidance: .nan}}": "finite number",
    "health: {best_by: fdd}": "health.best_by fdd: no such metric; choose one of score_gap",
    "health: {action: explode}": "Input should be 'stop', 'keep-best' or 'off'",
    "health: {patience: 0}": "health.patience: 0",
    "health: {drift: {min: 1, max: 0}}": "health.drift: min 1 is above max 0",
    "health: {drift: {max: .nan}}": "health.drift.max: nan",
    "health: {drift: {most: 1}}": "it is health.drift.max now",
    "health: {grad_norm: 5}": "health.grad_norm: 5",
    "name: ''": "begin with a letter or a digit",
    "name: ..": "begin with a letter or a digit",
    "name: ../x": "it names a folder inside that of the runs",
    "name: /x": "it names a folder inside that of the runs",
    "name: a\\b": "it names a folder inside that of the runs",
    'name: "a\\nb"': "it names a folder inside that of the runs",
    "name: -x": "begin with a letter or a digit",
    "name: 'a '": "it names a folder inside that of the runs",
    f"name: {LONG}": "300 letters are too long for a folder",
    "name: 5": "name: 5: Input should be a valid string",
    "plugins: json": "plugins",
    "plugins: [no_such_module]": "cannot import 'no_such_module'",
    "tracking: {experiment: ''}": "tracking.experiment",
    "extends: nowhere": "no recipe 'nowhere'",
    "extends: attack.yaml": "extends itself",
    "- a": "a recipe is a mapping",
    "a: [": "not YAML",
    "\x00": "not YAML",
    "seed: 1\n\tname: x": "not YAML",
}
"""What a sentence must contain, by the text of a recipe that extends portrait-tiny."""

ACCEPTED_RECIPES = [
    "",
    "seed: 0x1F",
    "seed: 1_000",
    "name: 'on'",
    "name: my run 2",
    "name: v1.2+test",
    "data: {flip: TRUE}",
    "data: {flip: false}",
    "schedule: {num_cycles: 200}",
    "schedule: {num_cycles: 20.0}",
    "schedule: {num_cycles: '20'}",
    "schedule: {ema_decay: null}",
    "schedule: {optimizers: {critic: {lr: 1e-4}}}",
    "schedule: {optimizers: {critic: {betas: [0, 0]}}}",
    "schedule: {optimizers: {critic: {decay: 1}}}",
    "schedule: {optimizers: {critic: {decay_steps: 400}}}",
    "schedule: {optimizers: {critic: {decay: 0.5, final_lr: 1.0e-4}}}",
    "schedule: {optimizers: {generator: {decay_steps: 80}}}",
    "schedule: {optimizers: {generator: {decay_steps: 200}}, num_cycles: 200}",
    "schedule: {optimizers: {generator: {decay: null}}}",
    "schedule: {optimizers: {decoder: {lr: 1}}}",
    "method: {name: dmd}",
    "method: {name: dmd, adversarial_weight: 0}",
    "method: {name: euler}",
    "method: {name: lcm}",
    "method: {name: finetune}",
    "method: {warmup_cycles: 79}",
    "method: {alpha_weak: 1}",
    "method: {score_sigma: {min: 0.5, max: 0.5}}",
    "engine: {kind: torch}",
    "cluster: {num_workers: 8}",
    "cluster: {gpus_per_worker: 0.5}",
    "cluster: {gpus_per_worker: 2}",
    "cluster: {num_workers: 64, address: auto}\nschedule: {batch_size: 64}",
    "data: {bucket: {num_frames: 33}}\nevaluation: {data: {bucket: {num_frames: 33}}}",
    "data: {other_buckets: [{num_frames: 17, height: 64, width: 128}]}",
    "evaluation: null",
    "health: {best_by: grad_norm}",
    "health: {drift: {min: null, max: null}}",
    "model: {teacher: null}",
    "plugins: []",
]


def run(job: str, command: str) -> tuple[object, str]:
    """Give a command line to a job as the shell does; return its status and what it said."""
    said = StringIO()
    sys.argv = [f"jobs/{job}.py", *command.split()]
    with redirect_stdout(StringIO()), redirect_stderr(said):
        try:
            importlib.import_module(f"magicdistill.jobs.{job}").main()
        except SystemExit as ended:
            return ended.code, said.getvalue()
    return "went on", said.getvalue()


def fault(path: Path, text: str) -> str | None:
    """Return why a recipe is refused."""
    path.write_text(
        text if "extends:" in text or text in RAW else f"extends: portrait-tiny\n{text}\n"
    )
    try:
        recipe = load_recipe(path)
        demand_trainable(recipe)
        demand_weights(recipe)
    except RecipeError as error:
        return str(error)
    return None


RAW = ("- a", "a: [", "\x00")
TAKES_RECIPES = ("distill", "finetune", "train_vae", "plan", "curate", "evaluate")


@pytest.fixture
def tell(capsys: pytest.CaptureFixture[str]) -> object:
    """Print past pytest's capture."""

    def print_count(text: str) -> None:
        with capsys.disabled():
            print(f"\n{text}")

    return print_count


def test_what_is_wrong_on_a_command_line_is_refused_in_a_sentence(monkeypatch, tmp_path, tell):
    monkeypatch.setattr(sys, "argv", [])
    monkeypatch.chdir(tmp_path)
    wrong, count = [], 0
    for job, cases in REFUSED_COMMANDS.items():
        for command, expected in cases.items():
            dry = " --dry-run" if job in ("distill", "finetune", "train_vae") else ""
            status, said = run(job, command + dry)
            count += 1
            if status != 2 or expected not in said or "Traceback" in said:
                wrong.append((job, command, status, said))
    tell(f"{count} command lines refused")
    assert wrong == []


def test_what_is_right_on_a_command_line_is_accepted(monkeypatch, tmp_path, tell):
    monkeypatch.setattr(sys, "argv", [])
    monkeypatch.chdir(tmp_path)
    wrong, count = [], 0
    for job, commands in ACCEPTED_COMMANDS.items():
        for command in commands:
            count += 1
            if job in TAKES_RECIPES:
                status, said = run(job, f"{command} --dry-run")
                if status != 0:
                    wrong.append((job, command, status, said))
            else:
                module = importlib.import_module(f"magicdistill.jobs.{job}")
                parse_arguments(job, module.Arguments, "", command.replace("'", "").split(" "))
    tell(f"{count} command lines accepted")
    assert wrong == []


def test_what_is_wrong_in_a_recipe_is_refused_in_a_sentence(tmp_path, tell):
    found = {text: fault(tmp_path / "attack.yaml", text) for text in REFUSED_RECIPES}
    tell(f"{len(found)} recipes refused")
    assert {
        text: said
        for text, said in found.items()
        if said is None or REFUSED_RECIPES[text] not in said
    } == {}


def test_what_is_right_in_a_recipe_is_accepted(tmp_path, tell):
    found = {text: fault(tmp_path / "attack.yaml", text) for text in ACCEPTED_RECIPES}
    tell(f"{len(found)} recipes accepted")
    assert {text: said for text, said in found.items() if said is not None} == {}


def test_of_a_repeated_flag_the_last_one_counts_also_for_alternatives():
    twice = load_recipe("portrait-tiny", ["--method.name", "magic", "--method.name=dmd2"])
    assert twice == load_recipe("portrait-tiny", ["--method.name", "dmd2"])
