"""The base of all recipes: every key with its default. A recipe lists what differs.

Set any key from the command line: `--config.optimizer.lr=1e-4`. Unknown keys are errors.
"""

from ml_collections import ConfigDict

from mail_jax import InputError


def get_config(preset: str = "instance") -> ConfigDict:
  """Returns a preset small enough for a CPU: `instance`, or `paper`.

  `paper` is the reading closest to the figure of arXiv 2111.10747.
  """
  c = ConfigDict()
  # Seed of the initial parameters, the order of the data, augmentation and dropout.
  c.seed = 0
  # Name of the dataset, as `mail-jax prepare --dataset` takes it, or a mixture: NAME,NAME by size,
  # NAME:WEIGHT,NAME:WEIGHT by samples. `NAME:WEIGHT:multi:no_target` says that expressions of this
  # dataset may have several targets or none; only these then teach it.
  c.dataset = "shapes"
  # A mixture by size takes each dataset in proportion to its refs to the power of 1 / this.
  c.mixture_temperature = 1.0
  # Training leaves out the images of the evaluation splits of these datasets (NAME or NAME/SPLIT),
  # wherever they are in its data. `auto` is every dataset of a mixture, and nothing for a single
  # one, which is used as it was published. () leaves out none.
  c.exclude = ("auto",)
  # Side in pixels of the square that images are resized to.
  c.image_size = 96
  # Instances per image, the ones with the highest scores; 0 is the bimodal baseline without masks.
  c.max_instances = 12
  # Word pieces per expression; longer expressions are cut, and evaluations report how many.
  c.max_tokens = 16
  # What a new run starts from: `run:WORKDIR` (or `run:WORKDIR@last`, `@STEP`; else the best) and
  # `export:FOLDER` (or `export:hf://USER/NAME[@REVISION]`) are models of ours, `vilt:PATH` and
  # `beit3:PATH` checkpoints of ViLT and BEiT-3; empty is random weights.
  c.init = ""
  # Regex of the parameters of `init` that are not taken over.
  c.init_leave_out = ""
  # `wordpiece:VOCAB.txt`, `sentencepiece:FILE.model` or `beit3:beit3.spm`. If empty: the one beside
  # `init`, or without `init` a SentencePiece model trained on the training expressions.
  c.tokenizer = ""
  # Word pieces of a tokenizer that is trained.
  c.vocab_size = 512

  # Length of the run in updates. Set one of `steps`, `epochs` and `minutes`; the others are 0.
  c.steps = 0
  # Length of the run in passes over the training refs.
  c.epochs = 0.0
  # Length of the run in wall time. The number of steps follows from the speed; a resumed run keeps
  # it.
  c.minutes = 0.0
  # Training examples per update, over all devices.
  c.batch_size = 64
  # Micro-batches per update, computed one after the other to save memory.
  c.grad_accum_steps = 1
  # Training decodes one example in this many; the selection learns from all of them.
  c.decode_every = 1
  # Training decodes the target instance instead of the selected one, so that the decoder does not
  # learn from wrong selections. Only for `hard` and `multi` selection.
  c.teacher_forcing = True
  # Expressions per batch of an evaluation, over all devices.
  c.eval_batch_size = 64
  # Split that training evaluates on, or several, such as refcoco_unc/val,refcocog_umd/val; of a
  # mixture, `val` is that of every dataset. Empty for none.
  c.eval_split = "val"
  # Steps between evaluations.
  c.eval_every = 1000
  # Expressions that training evaluates on; 0 is the whole split, so that `best` is the best on all.
  c.eval_expressions = 0
  # Steps between checkpoints.
  c.save_every = 500
  # Steps between rows of the log.
  c.log_every = 50
  # An update whose loss or gradient is not finite is skipped; this many in a row end the run. 0 is
  # no limit.
  c.max_nonfinite_steps = 10
  # Metric on `eval_split` that decides which checkpoint is the best; of several, their mean.
  c.best_metric = "mIoU"
  # The run ends after so many evaluations in a row without a better `best_metric`; 0: never.
  c.early_stop = 0

  # Bit-identical repetitions on GPUs too, by slower kernels (docs/reports/reliability.md); CPUs and
  # TPUs always repeat. Without it, GPUs round differently in every run.
  c.deterministic = False

  # Where a run logs to, besides the terminal and `metrics.jsonl`.
  c.log = ConfigDict()
  # Writes event files to WORKDIR/tensorboard; needs `pip install "mail_jax[tensorboard]"`.
  c.log.tensorboard = False
  # PROJECT or ENTITY/PROJECT of Weights & Biases; needs `pip install "mail_jax[wandb]"`.
  c.log.wandb = ""
  # Validation samples that are drawn, always the same ones: by both at every evaluation, and into
  # `progress.png`.
  c.log.images = 8
  # Steps between drawings of WORKDIR/progress.png; 0 draws none.
  c.log.picture_every = 0

  # The network.
  c.model = ConfigDict()
  # Width of the encoder.
  c.model.width = 96
  # Blocks of the encoder.
  c.model.depth = 4
  # Attention heads; `width` is a multiple of it.
  c.model.heads = 4
  # Hidden units of a block's MLP, as a multiple of `width`.
  c.model.mlp_ratio = 4.0
  # Parameters of a block: `shared` by all tokens, as in ViLT, or `multiway`, as in BEiT-3: norms,
  # projections and an MLP for each of image, masks and text.
  c.model.experts = "shared"
  # Dropout rate of the encoder's residual branches.
  c.model.dropout = 0.0
  # Probability that an example skips a residual branch of the last block; less in those before it.
  c.model.drop_path = 0.0
  # Side of a patch in pixels, a power of two that divides `image_size`.
  c.model.patch_size = 32
  # Channels of the decoder's stages: log2(`patch_size`) of them.
  c.model.decoder_widths = (64, 32, 16, 8, 8)
  # Normalisation in the decoder: `batch` or `group`.
  c.model.norm = "batch"
  # Tokens of the masks: `instance` is one per instance, `stacked` one per patch with all masks as
  # its channels.
  c.model.mask_tokens = "instance"
  # Whether an instance's token sees the image inside its mask.
  c.model.appearance = True
  # Whether an instance's token knows how many similar instances are on each side.
  c.model.neighbours = True
  # How instances are selected: `hard` (one), `soft` (a weighted mean), `multi` (any number) or
  # `none` (all).
  c.model.selection = "hard"
  # Whether the model has an output for expressions without a target.
  c.model.no_target = False
  # Whether the decoder sees the selected mask at full resolution.
  c.model.mask_path = True
  # Whether the decoder sees the image at full resolution.
  c.model.image_path = True
  # Implementation of the attention: `xla`, `cudnn` (NVIDIA), `tpu`, or `auto`, the fastest one that
  # runs on the devices at hand.
  c.model.backend = "auto"
  # What the backward pass computes again to save memory: `none`, `products` (everything between the
  # matrix products) or `block` (everything).
  c.model.remat = "none"
  # Compiles the blocks as one program in a loop: deep models compile sooner.
  c.model.scan = False
  # Pads the sequence to a multiple of this many tokens.
  c.model.pad_to_multiple_of = 1
  # Type of the activations: `float32`, or `bfloat16` for accelerators. Parameters, statistics,
  # softmax and losses are float32; on CPUs, activations of a trained model are, too.
  c.model.dtype = "float32"

  # Weights of the loss terms.
  c.loss = ConfigDict()
  # Binary cross-entropy of the pixels.
  c.loss.bce = 1.0
  # Dice loss of the mask.
  c.loss.dice = 1.0
  # Cross-entropy of the selection.
  c.loss.selection = 1.0
  # Cross-entropy of the output for expressions without a target, in models that have it.
  c.loss.no_target = 1.0

  # Augmentation of the training examples.
  c.augment = ConfigDict()
  # Flips half of the images, and exchanges left and right in their expressions.
  c.augment.flip = True
  # Strength of random brightness, contrast and saturation; 0 is off.
  c.augment.jitter = 0.2
  # Smallest and largest factor by which examples are zoomed; (1.0, 1.0) is off. The target is never
  # cropped, nor anything where the expression counts.
  c.augment.scale = (1.0, 1.0)
  # Probability that an instance is left out.
  c.augment.instance_dropout = 0.02
  # Probability that an example loses all its instances.
  c.augment.all_instances_dropout = 0.03
  # Strength, 0 to 1, of the errors of a detector that instance masks get: they are moved, ragged,
  # cut, merged, found twice and missed. For masks that are better than those of evaluation.
  c.augment.mask_noise = 0.0

  # AdamW and its learning rate.
  c.optimizer = ConfigDict()
  # Peak of the learning rate.
  c.optimizer.lr = 1e-3
  # Steps until the peak.
  c.optimizer.warmup_steps = 300
  # Schedule after the peak: `cosine`, `polynomial` or `constant`.
  c.optimizer.schedule = "cosine"
  # Exponent of the `polynomial` schedule.
  c.optimizer.power = 0.9
  # Learning rate at the end, as a fraction of the peak.
  c.optimizer.final = 0.01
  # Adam's decay of the mean of the gradient.
  c.optimizer.b1 = 0.9
  # Adam's decay of the mean of its square.
  c.optimizer.b2 = 0.98
  # Adam's epsilon.
  c.optimizer.eps = 1e-8
  # Decoupled weight decay, times the factor of `decay_rules`.
  c.optimizer.weight_decay = 0.02
  # Largest global norm of the gradient; larger gradients are scaled down to it.
  c.optimizer.clip = 5.0
  # Learning rate of each parameter, as a multiple of `lr`; 0 freezes it, which saves memory.
  # Ordered (regex, value) rules: the first regex found in the parameter's path decides.
  c.optimizer.lr_scale = (("^decoder|^mask_gain", 4.0), (".*", 1.0))
  # Weight decay of each parameter, as a multiple of `weight_decay`; rules as in `lr_scale`.
  c.optimizer.decay_rules = (("(kernel|words/embedding)$", 1.0), (".*", 0.0))
  # Decay of the moving average of the parameters, which is what is evaluated; 0 is off.
  c.ema_decay = 0.998

  # Devices, by what they share.
  c.mesh = ConfigDict()
  # Copies of the parameters; -1 uses all remaining devices.
  c.mesh.data = -1
  # Devices of one slice that share a copy of the parameters, the optimizer's state and the average.
  c.mesh.fsdp = 1
  # Ordered (regex, rule) for parameters, optimizer state and average: `zero1` shards them over
  # `data`, too, for the update; `fsdp`, `replicate`, or an axis (or None) for each dimension.
  c.sharding_rules = ((".*", "zero1"),)

  # How training data is read.
  c.loader = ConfigDict()
  # Keeps decoded images in memory, in every process.
  c.loader.cache = False
  # Refs of an image that share one decoding per epoch, at most; not together with `cache`. Above 1,
  # the order of the data is another one, and depends on the number of processes.
  c.loader.refs_per_image = 1
  # Shorter lengths, such as (8, 12), for batches whose expressions all fit; single process only.
  c.loader.text_buckets = ()
  # Threads of the input pipeline.
  c.loader.threads = 2
  # At a damaged record: `stop`, or `skip`, which reads all records before training and reports the
  # damaged ones.
  c.loader.on_error = "stop"

  if preset == "paper":
    c.model.mask_tokens = "stacked"
    c.model.selection = "soft"
    c.model.mask_path = False
    c.model.image_path = False
    c.teacher_forcing = False
  elif preset != "instance":
    raise InputError(f"configs/base.py:{preset}: the presets are instance and paper")
  return c
