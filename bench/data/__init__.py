"""Corpora and datasets: what is there, its fingerprint, and the prepared images as memory-mapped arrays.

A dataset enters a key by its fingerprint: the digest of a manifest of contents, so moving files changes nothing and
altering one changes the key. Images are decoded, cropped and resized once into `runs/cache/`; later epochs touch only
the map. Nothing here imports torch, and nothing heavy is imported before images are read.
"""

from bench.data.cache import in_threads, prepared, take
from bench.data.decode import read_image, read_mask
from bench.data.digests import Digests
from bench.data.files import (
    IMAGE_SUFFIXES,
    corpus_files,
    corpus_images,
    find_root,
    holds_images,
    inventory,
    list_images,
    samples,
)
from bench.data.kinds import PREPARATION, CorpusRef, DatasetRef, Inventory
from bench.data.listing import (
    first_of,
    folder_of,
    list_samples,
    read_grades,
    read_lines,
    read_table,
    read_words,
)
from bench.data.maps import MARK, computed_map, map_folders
from bench.data.opened import (
    Corpus,
    Dataset,
    corpus_folder,
    dataset_folder,
    draw,
    open_corpus,
    open_dataset,
    phantom_image,
    phantom_maker,
    split_train,
)
from bench.data.prepare import fov_box, item_shapes, prepare_image, prepare_phantom, prepare_sample
from bench.data.refs import corpus_content, corpus_ref, dataset_ref
from bench.data.truths import KINDS, Frame, faint, fit, is_faint, mask_factor
from bench.spec.samples import FOLDER, CorpusImage, Grade, Mask, MissingData, NoImages, Points, RunLength, Sample

__all__ = [
    "FOLDER",
    "IMAGE_SUFFIXES",
    "KINDS",
    "MARK",
    "PREPARATION",
    "Corpus",
    "CorpusImage",
    "CorpusRef",
    "Dataset",
    "DatasetRef",
    "Digests",
    "Frame",
    "Grade",
    "Inventory",
    "Mask",
    "MissingData",
    "NoImages",
    "Points",
    "RunLength",
    "Sample",
    "computed_map",
    "corpus_content",
    "corpus_files",
    "corpus_folder",
    "corpus_images",
    "corpus_ref",
    "dataset_folder",
    "dataset_ref",
    "draw",
    "faint",
    "find_root",
    "first_of",
    "fit",
    "folder_of",
    "fov_box",
    "holds_images",
    "in_threads",
    "inventory",
    "is_faint",
    "item_shapes",
    "list_images",
    "list_samples",
    "map_folders",
    "mask_factor",
    "open_corpus",
    "open_dataset",
    "phantom_image",
    "phantom_maker",
    "prepare_image",
    "prepare_phantom",
    "prepare_sample",
    "prepared",
    "read_grades",
    "read_image",
    "read_lines",
    "read_mask",
    "read_table",
    "read_words",
    "samples",
    "split_train",
    "take",
]
