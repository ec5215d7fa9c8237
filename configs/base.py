"""What every recipe starts from; a recipe lists what differs.

Any value can be set from the command line: `--config.optimizer.lr=1e-4`. Unknown keys are errors.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  """Returns the base: the `instance` preset, small enough for a CPU."""
  c = ConfigDict()
  c.seed = 0
  c.dataset = "shapes"  # a name that `input_pipeline.prepare` knows
  c.image_size = 96  # pixels; images are resized to a square
  c.max_instances = 12  # K, best scores first; 0 is the bimodal baseline
  c.max_tokens = 16  # word pieces; longer expressions are cut, and counted
  c.init = ""  # vilt:PATH starts from a ViLT checkpoint; empty: from random weights
  # wordpiece:VOCAB.txt or sentencepiece:FILE.model. Empty: the vocabulary that comes with `init`, or else a
  # SentencePiece model of `vocab_size` ids that is trained on the training sentences.
  c.tokenizer = ""
  c.vocab_size = 512

  c.steps = (
    0  # updates; one of `steps`, `epochs` and `minutes` says how long a run is, the others are 0
  )
  c.epochs = 0.0  # passes over the training refs
  c.minutes = (
    0.0  # wall time; the number of steps is fixed once the speed is known, and kept on resume
  )
  c.batch_size = 64  # over all devices
  c.grad_accum_steps = 1  # micro-batches that a batch is taken in, one after the other
  c.decode_every = 1  # training decodes one example of so many; the selection learns from all
  # Training decodes the instance that is meant instead of the one that is chosen, so that the decoder does not learn
  # from wrong choices; the choice learns from its own loss. With `hard` and `multi` selection.
  c.teacher_forcing = True
  c.eval_batch_size = 64
  c.eval_split = "val"
  c.eval_every = 1000  # steps
  c.eval_expressions = 0  # of the split, in training; 0 is all of it, so that `best` is the best
  c.save_every = 500  # steps
  c.log_every = 50  # steps
  # An update whose loss or gradient is not finite is skipped; so many in a row end the run. 0 never ends it.
  c.max_nonfinite_steps = 10
  c.best_metric = "mIoU"

  # Logging besides the terminal and `metrics.jsonl`: docs/guides/logging.md.
  c.log = ConfigDict()
  c.log.tensorboard = False  # events in WORKDIR/tensorboard; pip install "mail_jax[tensorboard]"
  c.log.wandb = ""  # PROJECT or ENTITY/PROJECT of Weights & Biases; pip install "mail_jax[wandb]"
  c.log.images = 8  # validation samples that either shows at every evaluation, always the same

  c.model = ConfigDict()
  c.model.width = 96
  c.model.depth = 4
  c.model.heads = 4
  c.model.mlp_ratio = 4.0
  c.model.dropout = 0.0
  c.model.patch_size = 32
  c.model.decoder_widths = (64, 32, 16, 8, 8)
  c.model.norm = "batch"  # batch | group
  # So many of the `depth` blocks, the first, are three stacks: image, masks and text each by itself.
  c.model.separate_blocks = 0
  c.model.mask_tokens = "instance"  # instance | stacked | sparse
  # Places for tokens of `sparse` masks, one for each patch of an instance; those that cover least are left out, and
  # counted in training (`dropped_pairs`). A generated scene has up to 26 at patches of 32 pixels, 54 at 16, 131 at 8.
  c.model.sparse_tokens = 32
  c.model.instance_views = (
    "both"  # both | crop (in its box) | frame (on the whole image): of an instance's mask
  )
  c.model.appearance = True  # an instance's token sees the image inside its mask
  c.model.neighbours = True  # it knows how many instances like it lie on each side
  c.model.selection = "hard"  # hard | soft | multi (several may be meant) | none
  c.model.none_slot = True  # the selection may choose none of the instances
  c.model.no_target = (
    False  # says whether anything is meant, for data with expressions that mean nothing
  )
  c.model.mask_path = True
  c.model.image_path = True
  c.model.coordinates = True  # the map of where each patch lies joins the decoder
  c.model.backend = "xla"  # of the attention: xla | cudnn (NVIDIA) | tpu
  # What the backward pass computes again to save memory: none | products (what lies between them) | block (all of it)
  c.model.remat = "none"
  c.model.scan = False  # the blocks are one program in a loop: deep models compile sooner
  c.model.pad_to_multiple_of = 1  # the sequence is padded to a multiple of so many tokens
  c.model.dtype = "float32"  # float32 | bfloat16 (accelerators)

  c.loss = ConfigDict()
  c.loss.bce = 1.0
  c.loss.dice = 1.0
  c.loss.selection = 1.0
  c.loss.no_target = 1.0  # only of a model that says it

  c.augment = ConfigDict()
  c.augment.flip = True  # left and right are exchanged in the text too
  c.augment.jitter = 0.2  # brightness, contrast, saturation; 0 is off
  c.augment.instance_dropout = 0.02  # share of instances left out
  c.augment.all_instances_dropout = 0.03  # share of examples that see no instance at all

  c.optimizer = ConfigDict()
  c.optimizer.lr = 1e-3  # peak
  c.optimizer.warmup_steps = 300
  c.optimizer.schedule = "cosine"  # cosine | polynomial | constant
  c.optimizer.power = 0.9  # of the polynomial
  c.optimizer.final = 0.01  # the last learning rate, as a share of the peak
  c.optimizer.b1 = 0.9
  c.optimizer.b2 = 0.98
  c.optimizer.eps = 1e-8
  c.optimizer.weight_decay = 0.02
  c.optimizer.clip = 5.0  # largest global norm of the gradient; longer ones are scaled down to it
  # Ordered (regex, value) rules; the first that is found in a parameter's path decides.
  c.optimizer.lr_scale = (("^decoder|^mask_gain", 4.0), (".*", 1.0))  # 0 freezes
  c.optimizer.decay_rules = (("(kernel|words/embedding)$", 1.0), (".*", 0.0))
  c.ema_decay = 0.998  # 0 is off

  c.mesh = ConfigDict()
  c.mesh.data = -1  # -1 takes what is left
  c.mesh.fsdp = (
    1  # devices that share a copy of the parameters, the optimizer's state and the average
  )
  # Ordered (regex, rule): `fsdp`, `replicate`, or an axis (or None) for every dimension; `sharding.state_sharding`.
  c.sharding_rules = ((".*", "fsdp"),)

  c.loader = ConfigDict()
  c.loader.cache = False  # keep decoded images in memory
  # Samples of an image, at most, that share one decoding in an epoch; not with `cache`. Their order is another one.
  c.loader.refs_per_image = 1
  # Shorter rows of tokens that a batch may have, such as (8, 12), where its texts fit; not with several processes.
  c.loader.text_buckets = ()
  c.loader.shuffle_buffer = 4096  # refs
  c.loader.threads = 2  # of the input pipeline
  # A damaged training record: "stop", or "skip" it: all are read once before training, and said to be left out.
  c.loader.on_error = "stop"
  return c


def paper(config: ConfigDict) -> ConfigDict:
  """Turns a recipe into the preset `paper`: the reading closest to the figure of arXiv 2111.10747."""
  config.model.mask_tokens = "stacked"
  config.model.selection = "soft"
  config.model.mask_path = False
  config.model.image_path = False
  config.teacher_forcing = False
  return config
