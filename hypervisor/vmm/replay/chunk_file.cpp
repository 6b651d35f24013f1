#include "vmm/replay/chunk_file.hpp"

#include <fmt/format.h>
#include <xxhash.h>
#include <zstd.h>

#include <array>
#include <cstring>
#include <utility>

namespace strata::replay {

namespace {

constexpr std::array<unsigned char, 8> kMagic{0x89, 'S', 'T', 'R', 'A', 'T', 'A', 0x1A};
/// Recordings are written while the guest runs: speed before size.
constexpr int kCompressionLevel = 1;

struct FileHeader {
  std::array<unsigned char, 8> magic = kMagic;
  std::uint16_t version = kFormatVersion;
  std::uint8_t kind = 0;
  std::array<std::uint8_t, 5> zero{};
};
static_assert(sizeof(FileHeader) == 16);

struct ChunkHeader {
  std::uint8_t type = 0;
  std::array<std::uint8_t, 3> zero{};
  std::uint32_t sequence = 0;
  std::uint32_t bytes = 0;
  std::uint32_t packed = 0;
};
static_assert(sizeof(ChunkHeader) == 16);

std::uint64_t checksum(const ChunkHeader& header, std::span<const std::byte> packed) {
  return XXH3_64bits_withSeed(packed.data(), packed.size(), XXH3_64bits(&header, sizeof header));
}

Unexpected<FileError> fail(const std::string& path, const std::string& what) {
  return Unexpected{FileError{fmt::format("{}: {}", path, what)}};
}

template <class T>
std::span<const std::byte> bytes_of(const T& value) {
  return std::as_bytes(std::span{&value, 1});
}

bool read_exactly(std::istream& in, void* to, std::size_t size) {
  in.read(static_cast<char*>(to), static_cast<std::streamsize>(size));
  return static_cast<std::size_t>(in.gcount()) == size;
}

/// Follows the structure of a CBOR value without building it; false stops the parser.
class DepthCheck final : public nlohmann::json_sax<nlohmann::json> {
 public:
  explicit DepthCheck(std::size_t bytes) : bytes_{bytes} {}
  bool null() override { return true; }
  bool boolean(bool) override { return true; }
  bool number_integer(number_integer_t) override { return true; }
  bool number_unsigned(number_unsigned_t) override { return true; }
  bool number_float(number_float_t, const string_t&) override { return true; }
  bool string(string_t&) override { return true; }
  bool binary(binary_t&) override { return true; }
  bool key(string_t&) override { return true; }
  bool start_object(std::size_t elements) override { return enter(elements); }
  bool start_array(std::size_t elements) override { return enter(elements); }
  bool end_object() override { return leave(); }
  bool end_array() override { return leave(); }
  bool parse_error(std::size_t, const std::string&, const nlohmann::detail::exception&) override {
    return false;
  }

 private:
  static constexpr unsigned kDeepest = 16;
  bool enter(std::size_t elements) {
    // An indefinite length comes as the largest number; each element has a byte at least.
    return ++depth_ <= kDeepest && (elements == ~std::size_t{0} || elements <= bytes_);
  }
  bool leave() {
    --depth_;
    return true;
  }
  const std::size_t bytes_;
  unsigned depth_ = 0;
};

}  // namespace

struct ChunkWriter::Compressor {
  std::unique_ptr<ZSTD_CCtx, decltype(&ZSTD_freeCCtx)> context{ZSTD_createCCtx(), &ZSTD_freeCCtx};
};

ChunkWriter::ChunkWriter(host::OutputFile file)
    : file_{std::move(file)}, compressor_{std::make_unique<Compressor>()} {}

ChunkWriter::~ChunkWriter() = default;

Result<std::unique_ptr<ChunkWriter>> ChunkWriter::create(host::OutputFile file, FileKind kind) {
  std::unique_ptr<ChunkWriter> writer{new ChunkWriter{std::move(file)}};
  if (writer->compressor_->context == nullptr) {
    return fail(writer->file_.path(), "cannot be compressed: the host has no memory");
  }
  FileHeader header;
  header.kind = static_cast<std::uint8_t>(kind);
  writer->file_.restart();
  writer->file_.write(bytes_of(header));
  return writer;
}

void ChunkWriter::write(ChunkType type, std::span<const std::byte> bytes) {
  packed_.resize(ZSTD_compressBound(bytes.size()));
  const std::size_t packed =
      ZSTD_compressCCtx(compressor_->context.get(), packed_.data(), packed_.size(), bytes.data(),
                        bytes.size(), kCompressionLevel);
  if (ZSTD_isError(packed) != 0) {
    file_.fail();
    return;
  }
  const ChunkHeader header{.type = static_cast<std::uint8_t>(type),
                           .sequence = sequence_++,
                           .bytes = static_cast<std::uint32_t>(bytes.size()),
                           .packed = static_cast<std::uint32_t>(packed)};
  const std::uint64_t sum = checksum(header, std::span{packed_}.first(packed));
  file_.write(bytes_of(header));
  file_.write(bytes_of(sum));
  file_.write(std::span{packed_}.first(packed));
}

void ChunkWriter::write_json(ChunkType type, const nlohmann::json& value) {
  const std::vector<std::uint8_t> bytes = nlohmann::json::to_cbor(value);
  write(type, std::as_bytes(std::span{bytes}));
}

Result<void> ChunkWriter::finish() {
  if (file_.finish()) return {};
  return fail(file_.path(), "cannot be written: the disk may be full");
}

ChunkReader::ChunkReader(const std::string& path) : path_{path}, file_{path, std::ios::binary} {}

Result<std::unique_ptr<ChunkReader>> ChunkReader::open(const std::string& path, FileKind kind) {
  std::unique_ptr<ChunkReader> reader{new ChunkReader{path}};
  if (!reader->file_) return fail(path, "cannot be read");
  FileHeader header;
  if (!read_exactly(reader->file_, &header, sizeof header) || header.magic != kMagic) {
    return fail(path, "is neither a saved VM nor a recording");
  }
  if (header.version != kFormatVersion) {
    return fail(path, fmt::format("has format {}; this strata reads format {}", header.version,
                                  kFormatVersion));
  }
  if (header.kind != static_cast<std::uint8_t>(kind)) {
    return fail(path, kind == FileKind::state ? "is a recording, not a saved VM"
                                              : "is a saved VM, not a recording");
  }
  return reader;
}

Result<Chunk> ChunkReader::next() {
  ChunkHeader header;
  std::uint64_t sum = 0;
  if (!read_exactly(file_, &header, sizeof header) || !read_exactly(file_, &sum, sizeof sum)) {
    return fail(path_, "is cut off");
  }
  const bool sane = header.type >= 1 && header.type <= 4 && header.sequence == sequence_ &&
                    header.bytes != 0 && header.bytes <= kMaxChunkBytes &&
                    header.packed <= ZSTD_compressBound(header.bytes);
  if (!sane) return fail(path_, fmt::format("is damaged at chunk {}", sequence_));
  packed_.resize(header.packed);
  if (!read_exactly(file_, packed_.data(), packed_.size())) return fail(path_, "is cut off");
  if (checksum(header, packed_) != sum) {
    return fail(path_, fmt::format("is damaged at chunk {}", sequence_));
  }
  Chunk chunk{static_cast<ChunkType>(header.type), std::vector<std::byte>(header.bytes)};
  const std::size_t got =
      ZSTD_decompress(chunk.bytes.data(), chunk.bytes.size(), packed_.data(), packed_.size());
  if (got != chunk.bytes.size()) {
    return fail(path_, fmt::format("is damaged at chunk {}", sequence_));
  }
  ++sequence_;
  return chunk;
}

Result<nlohmann::json> parse_cbor(std::span<const std::byte> bytes, const std::string& path) {
  const auto* data = reinterpret_cast<const std::uint8_t*>(bytes.data());
  try {
    DepthCheck check{bytes.size()};
    if (nlohmann::json::sax_parse(data, data + bytes.size(), &check,
                                  nlohmann::json::input_format_t::cbor)) {
      auto value = nlohmann::json::from_cbor(data, data + bytes.size(), true, false);
      if (!value.is_discarded()) return value;
    }
  } catch (const nlohmann::json::exception&) {
    // As every other way of being wrong.
  }
  return fail(path, "holds no valid state");
}

}  // namespace strata::replay
