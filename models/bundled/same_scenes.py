"""Photographs of one scene under several names: stereo pairs, crops, framed, turned and retouched versions.

A perceptual hash does not see that they belong together. They were found with a copy detector (SSCD, a cosine of .545 or more, as
they are or upside down) among the images that `photographs` collects; every pair that looked alike to it is here, also a few that
only resemble each other. Names are the images' identities, hashes of package and path.
"""

from __future__ import annotations

__all__ = ["SAME_SCENES"]

SAME_SCENES: tuple[tuple[str, ...], ...] = (
    ("00ab39daf61e9baf", "ad62eb497645b7cd"),
    ("013e3985b407bbab", "979ccd8611649525"),
    ("025c6cb8780daaaa", "6f4d55ef71d4c2be"),
    ("02ff2dc107e4bfe8", "663c557c156a9a2c"),
    ("0950fb0ae8ab024a", "23dc4044a3d1078c", "c4d4a130ba9010b6"),
    ("0b6136e72b8c7c94", "dbba6a247b172944"),
    ("13bd4f806d76b21b", "461c77708be59839"),
    ("18bcd057e492b543", "cb592c412de14c56"),
    ("1a4757d5ef99ae41", "55afb6bc257f07dd"),
    ("1cb841929f77cd45", "efc6cfefd0bb5879"),
    ("2266a8316af27df9", "23c416889ba1d979"),
    ("253d5bca25a13319", "397e83003113b12c"),
    ("2628dcdf2698b2aa", "aeb725bc50d49302"),
    ("30f43256a9385c08", "707d7c668d155f3c", "ab9f48ec7b324921", "c483aa1e58958ebd"),
    ("3559fd9046008414", "72770a0b6c68e0f4", "e848b1352d990c32"),
    ("373eeb473f990849", "bf8f4310878bdda3"),
    ("398dc9aa844e12fe", "bfac86d5fc76359c"),
    ("3cff6d6178c9bff8", "7d60d0a5968abfd9"),
    ("492e4431503b67f8", "52eb4e8d22009dbd"),
    ("4b8431b3842e186b", "7a7ff5bd52caadd4"),
    ("4f4076a46e01dff1", "6f374d801df6e9ff", "7f35c6a2b4c7f4ef", "c9288f71a2537302"),
    ("59bf9a92c07eb14f", "fe0e147719a7093f"),
    ("6475598d6c800ea6", "9405f28f9543906b", "a169280b659950a2", "d0c97f87ad97a170"),
    ("7185d4e262ddb8e4", "f0b24adc0ee0a627"),
    ("71922e029a4b811f", "ec57d9b42f13c220"),
    ("867cff1bce0ba80f", "90be5aa58ce9c9eb"),
    ("937f50f04f8ca0bd", "c9f93d5dd9354aab"),
    ("dce21395a17a5ba5", "ea7281c84bd18549"),
    ("dfdd0bea94959f75", "f18469dd848ad5bc", "ff1d70062a818a9e"),
)
