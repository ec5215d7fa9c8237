"""Exports of annotation tools, written from the tools' own descriptions of their formats."""

import base64
import csv
import dataclasses
import io
import json
import pathlib
import zipfile
import zlib
from collections.abc import Callable, Sequence
from typing import Any
from xml.etree import ElementTree

import numpy as np
from PIL import Image

Polygon = list[tuple[float, float]]


@dataclasses.dataclass(frozen=True)
class Drawn:
  """An object that somebody drew around."""

  polygon: Polygon
  text: str
  label: str = "thing"


@dataclasses.dataclass(frozen=True)
class Photo:
  """A photo with objects; the name may have folders."""

  name: str
  height: int
  width: int
  objects: Sequence[Drawn]


def png(mask: np.ndarray) -> bytes:
  """Returns a mask as a PNG of one bit."""
  file = io.BytesIO()
  Image.fromarray(mask).save(file, format="PNG")
  return file.getvalue()


def write_json(path: pathlib.Path, content: Any) -> None:
  """Writes a JSON file, and the folders for it."""
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def labelme_photo(photo: Photo, shapes: Sequence[dict[str, Any]], **fields: Any) -> dict[str, Any]:
  """Returns LabelMe's file for a photo beside it."""
  return {
    "version": "5.5.0",
    "flags": {},
    "shapes": list(shapes),
    "imagePath": pathlib.PurePath(photo.name).name,
    "imageData": None,
    "imageHeight": photo.height,
    "imageWidth": photo.width,
  } | fields


def labelme_shape(points: Any, text: str, label: str = "thing", **fields: Any) -> dict[str, Any]:
  """Returns a polygon of LabelMe, or another shape by `fields`."""
  return {
    "label": label,
    "points": [list(point) for point in points],
    "group_id": None,
    "description": text,
    "shape_type": "polygon",
    "flags": {},
  } | fields


def write_labelme(folder: pathlib.Path, photos: Sequence[Photo]) -> None:
  """Writes a file beside each photo."""
  for photo in photos:
    shapes = [labelme_shape(row.polygon, row.text, row.label) for row in photo.objects]
    write_json(folder / pathlib.Path(photo.name).with_suffix(".json"), labelme_photo(photo, shapes))


def via_region(row: Drawn) -> dict[str, Any]:
  """Returns a polygon of the VGG Image Annotator 2."""
  shape = {
    "name": "polygon",
    "all_points_x": [x for x, _ in row.polygon],
    "all_points_y": [y for _, y in row.polygon],
  }
  attributes = {"category": row.label, "caption": row.text}
  return {"shape_attributes": shape, "region_attributes": attributes}


def write_via(folder: pathlib.Path, photos: Sequence[Photo]) -> None:
  """Writes the JSON of annotations."""
  rows = {
    f"{photo.name}1234": {
      "filename": photo.name,
      "size": 1234,
      "regions": [via_region(row) for row in photo.objects],
      "file_attributes": {},
    }
    for photo in photos
  }
  write_json(folder / "via_region_data.json", rows)


def write_via_project(folder: pathlib.Path, photos: Sequence[Photo]) -> None:
  """Writes a project of version 2, with regions by number as version 1 had them."""
  rows = {
    f"{photo.name}1234": {
      "filename": photo.name,
      "size": 1234,
      "regions": {str(k): via_region(row) for k, row in enumerate(photo.objects)},
    }
    for photo in photos
  }
  project = {"_via_settings": {}, "_via_img_metadata": rows, "_via_attributes": {"region": {}}}
  write_json(folder / "via_project.json", project)


def write_via_csv(folder: pathlib.Path, photos: Sequence[Photo]) -> None:
  """Writes the CSV of annotations."""
  folder.mkdir(parents=True, exist_ok=True)
  with (folder / "via.csv").open("w", encoding="utf-8", newline="") as file:
    file.write("filename,file_size,file_attributes,region_count,region_id,")
    file.write("region_shape_attributes,region_attributes\r\n")
    writer = csv.writer(file)
    for photo in photos:
      for k, row in enumerate(photo.objects):
        region = via_region(row)
        cells = (region["shape_attributes"], region["region_attributes"])
        row_of_file = (photo.name, 1234, "{}", len(photo.objects), k)
        writer.writerow(row_of_file + tuple(json.dumps(cell) for cell in cells))


def write_via3(folder: pathlib.Path, photos: Sequence[Photo]) -> None:
  """Writes a project of version 3."""
  attributes = {
    "1": {"aname": "caption", "type": 1, "options": {}},
    "2": {"aname": "category", "type": 1, "options": {}},
  }
  metadata, files, views = {}, {}, {}
  for number, photo in enumerate(photos, 1):
    files[str(number)] = {"fid": number, "fname": photo.name, "type": 2, "loc": 1, "src": ""}
    views[str(number)] = {"fid_list": [number]}
    for k, row in enumerate(photo.objects):
      metadata[f"{number}_{k}"] = {
        "vid": str(number),
        "flg": 0,
        "z": [],
        "xy": [7, *(value for point in row.polygon for value in point)],
        "av": {"1": row.text, "2": row.label},
      }
  write_json(
    folder / "project.json",
    {
      "project": {"pname": "x", "vid_list": list(views)},
      "config": {},
      "attribute": attributes,
      "file": files,
      "metadata": metadata,
      "view": views,
    },
  )


def write_cvat(folder: pathlib.Path, photos: Sequence[Photo]) -> None:
  """Writes "CVAT for images 1.1"."""
  root = ElementTree.Element("annotations")
  ElementTree.SubElement(root, "version").text = "1.1"
  ElementTree.SubElement(ElementTree.SubElement(root, "meta"), "task")
  for number, photo in enumerate(photos):
    size = {"width": str(photo.width), "height": str(photo.height)}
    image = ElementTree.SubElement(root, "image", {"id": str(number), "name": photo.name} | size)
    for row in photo.objects:
      points = ";".join(f"{x:.2f},{y:.2f}" for x, y in row.polygon)
      shape = {"label": row.label, "occluded": "0", "points": points, "z_order": "0"}
      element = ElementTree.SubElement(image, "polygon", shape)
      ElementTree.SubElement(element, "attribute", {"name": "caption"}).text = row.text
  folder.mkdir(parents=True, exist_ok=True)
  ElementTree.ElementTree(root).write(folder / "annotations.xml", "utf-8", xml_declaration=True)


def write_yolo(folder: pathlib.Path, photos: Sequence[Photo]) -> None:
  """Writes labels and `data.yaml`; the names of the categories are the texts."""
  texts = list(dict.fromkeys(row.text for photo in photos for row in photo.objects))
  for photo in photos:
    rows = []
    for row in photo.objects:
      shares = [value for x, y in row.polygon for value in (x / photo.width, y / photo.height)]
      rows.append(" ".join(map(repr, (texts.index(row.text), *shares))))
    path = folder / "labels" / pathlib.Path(photo.name).with_suffix(".txt")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(rows) + "\n")
  # JSON is YAML.
  settings = {"path": ".", "train": "images", "names": dict(enumerate(texts))}
  write_json(folder / "data.yaml", settings)


def supervisely_object(row: Drawn, **fields: Any) -> dict[str, Any]:
  """Returns a polygon of Supervisely, or another shape by `fields`."""
  return {
    "description": row.text,
    "geometryType": "polygon",
    "tags": [],
    "classTitle": row.label,
    "points": {"exterior": [list(point) for point in row.polygon], "interior": []},
  } | fields


def write_supervisely(folder: pathlib.Path, photos: Sequence[Photo]) -> None:
  """Writes a project whose datasets are the photos' folders."""
  write_json(folder / "meta.json", {"classes": [], "tags": []})
  for photo in photos:
    path = pathlib.Path(photo.name)
    write_json(
      folder / path.parent / "ann" / f"{path.name}.json",
      {
        "description": "",
        "tags": [],
        "size": {"height": photo.height, "width": photo.width},
        "objects": [supervisely_object(row) for row in photo.objects],
      },
    )


def supervisely_bitmap(mask: np.ndarray) -> dict[str, Any]:
  """Returns the part of a mask inside its bounding box as Supervisely writes it."""
  (top, *_, bottom), (left, *_, right) = (sorted(axis.tolist() * 2) for axis in mask.nonzero())
  part = mask[top : bottom + 1, left : right + 1]
  return {"data": base64.b64encode(zlib.compress(png(part))).decode(), "origin": [left, top]}


def write_datumaro(folder: pathlib.Path, photos: Sequence[Photo]) -> None:
  """Writes a subset called train."""
  labels = list(dict.fromkeys(row.label for photo in photos for row in photo.objects))
  items = []
  for photo in photos:
    annotations = [
      {
        "id": k,
        "type": "polygon",
        "attributes": {"caption": row.text},
        "group": 0,
        "label_id": labels.index(row.label),
        "points": [value for point in row.polygon for value in point],
        "z_order": 0,
      }
      for k, row in enumerate(photo.objects)
    ]
    image = {"path": photo.name, "size": [photo.height, photo.width]}
    stem = str(pathlib.PurePosixPath(photo.name).with_suffix(""))
    items.append({"id": stem, "annotations": annotations, "image": image})
  names = [{"name": label, "parent": "", "attributes": []} for label in labels]
  write_json(
    folder / "annotations/train.json",
    {"dm_format_version": "1.0", "infos": {}, "categories": {"label": {"labels": names}}}
    | {"items": items},
  )


@dataclasses.dataclass(frozen=True)
class Tool:
  """A format, and how it is written."""

  format: str
  """The value of `--from`."""
  write: Callable[[pathlib.Path, Sequence[Photo]], None]
  photos: str = ""
  """Folder of the photos; {} is the folder in a photo's name."""
  has_size: bool = True
  """Whether the export has the sizes of the photos."""


TOOLS = {
  "labelme": Tool("labelme", write_labelme),
  "via": Tool("via", write_via, has_size=False),
  "via project": Tool("via", write_via_project, has_size=False),
  "via csv": Tool("via", write_via_csv, has_size=False),
  "via 3": Tool("via", write_via3, has_size=False),
  "cvat": Tool("cvat", write_cvat),
  "yolo": Tool("yolo", write_yolo, "images/{}", has_size=False),
  "supervisely": Tool("supervisely", write_supervisely, "{}/img"),
  "datumaro": Tool("datumaro", write_datumaro, "images/train/{}"),
}


def photo_file(folder: pathlib.Path, tool: Tool, photo: Photo) -> pathlib.Path:
  """Returns where the tool has a photo."""
  name = pathlib.PurePosixPath(photo.name)
  return folder / (tool.photos or "{}").format(name.parent) / name.name


def pack(folder: pathlib.Path, path: pathlib.Path) -> None:
  """Packs the files of a folder into a zip."""
  with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
    for member in sorted(folder.rglob("*")):
      if member.is_file():
        file.write(member, member.relative_to(folder))
