"""Token files as NumPy, nanoGPT's prepare.py (tofile) and llm.c's data_common.py write them: 40 ids,
i * 7919 mod 50257. usage: make.py FOLDER"""
import sys

import numpy as np

folder = sys.argv[1]
ids = np.arange(40, dtype=np.int64) * 7919 % 50257
for name in ("u2", "u4", "i4", "i8"):
    np.save(f"{folder}/{name}.npy", ids.astype("<" + name))
with open(f"{folder}/version2.npy", "wb") as f:
    np.lib.format.write_array(f, ids.astype("<u2"), version=(2, 0))
np.save(f"{folder}/matrix.npy", ids.astype("<u2").reshape(8, 5))
np.save(f"{folder}/fortran.npy", np.asfortranarray(ids.astype("<u2").reshape(8, 5)))
np.save(f"{folder}/f4.npy", ids.astype("<f4"))
np.save(f"{folder}/big_endian.npy", ids.astype(">u2"))
np.save(f"{folder}/negative.npy", (ids - 7919).astype("<i4"))
ids.astype(np.uint16).tofile(f"{folder}/nanogpt.bin")
header = np.zeros(256, dtype=np.int32)
header[:3] = 20240520, 1, len(ids)
with open(f"{folder}/llmc.bin", "wb") as f:
    f.write(header.tobytes())
    f.write(ids.astype(np.uint16).tobytes())
header[:2] = 20240801, 7
with open(f"{folder}/llmc_llama3.bin", "wb") as f:
    f.write(header.tobytes())
    f.write(ids.astype(np.uint32).tobytes())
