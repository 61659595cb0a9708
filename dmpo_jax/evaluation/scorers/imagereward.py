"""ImageReward: preferences of the annotators of ImageRewardDB."""

from dmpo_jax.evaluation.scorers.base import Kind, Scorer

FILE = "ImageReward.pt"
TOKENIZER = "google-bert/bert-base-uncased"
# Mean and standard deviation of the head on the authors' data.
MEAN, STD = 0.16717362830052426, 1.0333394966054072
TOKENS = 35


def load(
  weights: str, *, dtype: str, batch_size: int, devices, tokenizer: str | None = None
) -> Scorer:
  """ImageReward of an image and its prompt; about normal over the authors' images.

      s = (head(h_CLS) - 0.16717...) / 1.03333...

  with h_CLS the state of BERT's first token, whose layers attend to BLIP's image encoder. A prompt
  has 35 tokens.

  Args:
    weights: `ImageReward.pt`, or a folder or repository with it.
    dtype: "float32" or "bfloat16"; the head is computed in float32.
    batch_size: Images at once on all devices.
    devices: Devices that share a batch; None: those of this process.
    tokenizer: Folder or repository of BERT's uncased tokenizer.

  Returns:
    A `Scorer` without features.

  Raises:
    InputError: The weights or the tokenizer cannot be had or do not fit.

  Source: arXiv 2304.05977; THUDM/ImageReward.
  """
  import functools

  import numpy as np

  from dmpo_jax import interop, models
  from dmpo_jax.evaluation.scorers.batches import batched, rows_on
  from dmpo_jax.evaluation.scorers.clip_features import check_ids, find_file
  from dmpo_jax.evaluation.scorers.preprocess import Preprocessing

  config, params = interop.load_image_reward(find_file(weights, FILE), dtype=dtype)
  fields, network = models.read_config(config), models.build(config)
  prepared = Preprocessing(fields.image_size, crop="torchvision")

  @functools.cache
  def words():
    return interop.load_tokenizer(tokenizer or TOKENIZER, "BertTokenizer")

  def reward(params, rows):
    images = prepared.normalise(rows["crop"])
    return network.apply(params, images, rows["ids"], rows["mask"], dtype=dtype)

  run = batched(reward, params, rows_on(devices, batch_size))

  def scores(images, prompts):
    tokens = interop.tokenize(words(), list(prompts), length=TOKENS)
    check_ids(tokens, fields.vocab_size, TOKENS)
    mask = (tokens.ids != words().pad_token_id).astype(np.int32)

    def row(i):
      return {
        "crop": prepared.crop_of(np.asarray(images[i])),
        "ids": tokens.ids[i],
        "mask": mask[i],
      }

    return (run(range(len(images)), row).astype(np.float64) - MEAN) / STD

  return Scorer("imagereward", scores, needs_prompts=True)


KIND = Kind(
  load,
  "ImageReward: preferences of ImageRewardDB's annotators, about normal.",
  f"{FILE}, or a folder or repository with it; it is published in THUDM/ImageReward",
)
