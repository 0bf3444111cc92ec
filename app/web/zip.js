// A folder as one zip (stored, not compressed), so that its structure reaches the service: series, patients, slides.
const TABLE = new Uint32Array(256).map((_, index) => {
  let value = index;
  for (let bit = 0; bit < 8; bit++) value = value & 1 ? 0xedb88320 ^ (value >>> 1) : value >>> 1;
  return value;
});

async function crc32(file) {
  let crc = 0xffffffff;
  const reader = file.stream().getReader();
  for (let part = await reader.read(); !part.done; part = await reader.read())
    for (let at = 0; at < part.value.length; at++) crc = TABLE[(crc ^ part.value[at]) & 255] ^ (crc >>> 8);
  return (crc ^ 0xffffffff) >>> 0;
}

// A header of the zip format: numbers of 2 or 4 bytes, [value, size].
function header(fields) {
  const view = new DataView(new ArrayBuffer(fields.reduce((sum, [, size]) => sum + size, 0)));
  let at = 0;
  for (const [value, size] of fields) {
    if (size === 2) view.setUint16(at, value, true);
    else view.setUint32(at, value, true);
    at += size;
  }
  return view.buffer;
}

// `files`: [[name, File]]; the Blob refers to the files, so they are not copied into memory. At most 4 GB.
export async function zip(files, onProgress = () => {}) {
  const parts = [];
  const directory = [];
  let offset = 0;
  let done = 0;
  for (const [name, file] of files) {
    const text = new TextEncoder().encode(name);
    // version 2.0, names in UTF-8, stored, 1 January 1980
    const common = [[20, 2], [0x0800, 2], [0, 2], [0, 2], [0x21, 2], [await crc32(file), 4], [file.size, 4], [file.size, 4], [text.length, 2], [0, 2]];
    directory.push(header([[0x02014b50, 4], [20, 2], ...common, [0, 2], [0, 2], [0, 2], [0, 4], [offset, 4]]), text);
    parts.push(header([[0x04034b50, 4], ...common]), text, file);
    offset += 30 + text.length + file.size;
    onProgress((done += 1) / files.length);
  }
  const length = directory.reduce((sum, part) => sum + part.byteLength, 0);
  const end = header([[0x06054b50, 4], [0, 2], [0, 2], [files.length, 2], [files.length, 2], [length, 4], [offset, 4], [0, 2]]);
  return new Blob([...parts, ...directory, end], { type: "application/zip" });
}
