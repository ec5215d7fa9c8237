"""Segmenters of a few thousand random weights, with processors, saved by `save_pretrained`.

Random weights find nothing, so classes and masks are pushed until some queries are sure of
something.
"""

import json
import pathlib

import torch
import transformers as tf

LABELS = 5
BACKBONE = {
  "embed_dim": 16,
  "depths": [1, 1, 1, 1],
  "num_heads": [1, 1, 2, 2],
  "window_size": 4,
  "image_size": 64,
  "out_features": ["stage1", "stage2", "stage3", "stage4"],
}
TRANSFORMER = {
  "backbone_config": tf.SwinConfig(**BACKBONE),
  "hidden_dim": 32,
  "encoder_feedforward_dim": 32,
  "dim_feedforward": 32,
  "encoder_layers": 1,
  "decoder_layers": 2,
  "num_attention_heads": 2,
  "num_queries": 12,
  "num_labels": LABELS,
}
SIZE = {"shortest_edge": 96, "longest_edge": 160}


def mask2former(folder: pathlib.Path) -> tf.PreTrainedModel:
  config = tf.Mask2FormerConfig(
    feature_size=32,
    mask_feature_size=32,
    **TRANSFORMER,
  )
  model = _seeded(tf.Mask2FormerForUniversalSegmentation, config)
  _believe(model.class_predictor)
  tf.Mask2FormerImageProcessor(size=SIZE).save_pretrained(folder)
  return _saved(model, folder)


def maskformer(folder: pathlib.Path) -> tf.PreTrainedModel:
  config = tf.MaskFormerConfig(
    backbone_config=tf.SwinConfig(**BACKBONE),
    decoder_config=_decoder(),
    fpn_feature_size=32,
    mask_feature_size=32,
    num_labels=LABELS,
  )
  model = _seeded(tf.MaskFormerForInstanceSegmentation, config)
  _believe(model.class_predictor)
  _tell_apart(model.model.transformer_module.queries_embedder)
  tf.MaskFormerImageProcessor(size=SIZE).save_pretrained(folder)
  return _saved(model, folder)


def detr(folder: pathlib.Path) -> tf.PreTrainedModel:
  backbone = tf.ResNetConfig(
    embedding_size=8,
    hidden_sizes=[8, 16, 16, 32],
    depths=[1, 1, 1, 1],
    layer_type="basic",
    out_features=["stage1", "stage2", "stage3", "stage4"],
  )
  config = _decoder(
    use_timm_backbone=False, backbone=None, use_pretrained_backbone=False, backbone_config=backbone
  )
  model = _seeded(tf.DetrForSegmentation, config)
  _believe(model.detr.class_labels_classifier)
  _tell_apart(model.detr.model.query_position_embeddings)
  tf.DetrImageProcessor(size=SIZE).save_pretrained(folder)
  return _saved(model, folder)


def oneformer(folder: pathlib.Path) -> tf.PreTrainedModel:
  config = tf.OneFormerConfig(
    mask_dim=32,
    conv_dim=32,
    text_encoder_width=32,
    text_encoder_vocab_size=600,
    text_encoder_num_layers=1,
    text_encoder_n_ctx=0,
    text_encoder_proj_layers=1,
    query_dec_layers=1,
    **TRANSFORMER,
  )
  model = _seeded(tf.OneFormerForUniversalSegmentation, config)
  _believe(model.model.transformer_module.decoder.class_embed)
  _tell_apart(model.model.transformer_module.queries_embedder)
  classes = {str(k): {"name": f"class {k}", "isthing": k % 2} for k in range(LABELS)}
  (folder / "classes.json").write_text(json.dumps(classes))
  images = tf.OneFormerImageProcessor(
    size=SIZE, repo_path=str(folder), class_info_file="classes.json", num_labels=LABELS
  )
  tf.OneFormerProcessor(images, _letters(folder), max_seq_length=77).save_pretrained(folder)
  return _saved(model, folder)


def sam(folder: pathlib.Path) -> tf.PreTrainedModel:
  config = tf.SamConfig(
    vision_config=tf.SamVisionConfig(
      hidden_size=16,
      output_channels=16,
      num_hidden_layers=2,
      num_attention_heads=2,
      image_size=128,
      patch_size=16,
      mlp_dim=32,
      num_pos_feats=8,
      global_attn_indexes=[1],
      window_size=4,
      initializer_range=0.2,
    ),
    initializer_range=0.2,
    prompt_encoder_config=tf.SamPromptEncoderConfig(
      hidden_size=16, image_size=128, patch_size=16, mask_input_channels=4
    ),
    mask_decoder_config=tf.SamMaskDecoderConfig(
      hidden_size=16, mlp_dim=16, num_attention_heads=2, num_hidden_layers=2, iou_head_hidden_dim=16
    ),
  )
  model = _seeded(tf.SamModel, config)
  _sure_of_masks(model.mask_decoder, 0.95)
  images = tf.SamImageProcessor(
    size={"longest_edge": 128},
    pad_size={"height": 128, "width": 128},
    mask_size={"longest_edge": 32},
    mask_pad_size={"height": 32, "width": 32},
  )
  tf.SamProcessor(images).save_pretrained(folder)
  return _saved(model, folder)


def sam2(folder: pathlib.Path) -> tf.PreTrainedModel:
  backbone = tf.Sam2HieraDetConfig(
    hidden_size=8,
    num_attention_heads=1,
    blocks_per_stage=[1, 2, 2, 1],
    embed_dim_per_stage=[8, 16, 32, 64],
    num_attention_heads_per_stage=[1, 1, 2, 4],
    window_size_per_stage=[8, 4, 8, 4],
    global_attention_blocks=[4],
    image_size=[128, 128],
    window_positional_embedding_background_size=[4, 4],
    initializer_range=0.2,
  )
  config = tf.Sam2Config(
    vision_config=tf.Sam2VisionConfig(
      backbone_config=backbone,
      backbone_channel_list=[64, 32, 16, 8],
      backbone_feature_sizes=[[32, 32], [16, 16], [8, 8]],
      fpn_hidden_size=16,
      initializer_range=0.2,
    ),
    initializer_range=0.2,
    prompt_encoder_config=tf.Sam2PromptEncoderConfig(hidden_size=16, image_size=128),
    mask_decoder_config=tf.Sam2MaskDecoderConfig(
      hidden_size=16, mlp_dim=16, num_attention_heads=2, iou_head_hidden_dim=16
    ),
  )
  model = _seeded(tf.Sam2Model, config)
  _sure_of_masks(model.mask_decoder, 3.0)  # Before a sigmoid.
  images = tf.Sam2ImageProcessorFast(
    size={"height": 128, "width": 128}, mask_size={"height": 32, "width": 32}
  )
  tf.Sam2Processor(images, target_size=128).save_pretrained(folder)
  return _saved(model, folder)


def _decoder(**more) -> tf.DetrConfig:
  return tf.DetrConfig(
    d_model=32,
    encoder_layers=1,
    decoder_layers=2,
    encoder_attention_heads=8,
    decoder_attention_heads=8,
    encoder_ffn_dim=16,
    decoder_ffn_dim=16,
    num_queries=12,
    num_labels=LABELS,
    **more,
  )


def _letters(folder: pathlib.Path) -> tf.CLIPTokenizer:
  """A tokenizer that spells every word."""
  letters = "abcdefghijklmnopqrstuvwxyz0123456789"
  tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
  (folder / "vocab.json").write_text(json.dumps({token: k for k, token in enumerate(tokens)}))
  (folder / "merges.txt").write_text("#version: 0.2\n")
  return tf.CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))


def _seeded(kind, config) -> tf.PreTrainedModel:
  torch.manual_seed(0)
  return kind(config).eval()


def _believe(predictor: torch.nn.Linear) -> None:
  """Makes queries differ in their class, and "no object" rare."""
  with torch.no_grad():
    predictor.weight.copy_(torch.randn_like(predictor.weight))
    predictor.bias.zero_()
    predictor.bias[-1] = -2


def _tell_apart(queries: torch.nn.Embedding) -> None:
  torch.nn.init.normal_(queries.weight, std=30.0)


def _sure_of_masks(decoder: torch.nn.Module, rating: float) -> None:
  """Makes masks steep, hence stable, and the ratings of them close to one."""
  with torch.no_grad():
    for network in decoder.output_hypernetworks_mlps:
      network.proj_out.weight.mul_(5000)
    head = decoder.iou_prediction_head.proj_out
    head.weight.mul_(0.03)
    head.bias.fill_(rating)


def _saved(model: tf.PreTrainedModel, folder: pathlib.Path) -> tf.PreTrainedModel:
  model.save_pretrained(folder)
  return model
