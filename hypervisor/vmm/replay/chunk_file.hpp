// The file that saved VMs and recordings are kept in: a header and a row of chunks, each compressed
// and checksummed. Written and read as a stream, so that its length does not matter.
//
//   header   8 bytes magic, u16 version, u8 FileKind, 5 zero bytes
//   chunk    u8 ChunkType, 3 zero bytes, u32 sequence number, u32 bytes, u32 compressed bytes,
//            u64 XXH3 of the compressed bytes seeded with the XXH3 of the 16 bytes before,
//            compressed bytes (one zstd frame)
//
// All numbers little endian. The last chunk is of type `end`: a file without one was cut off.
#pragma once

#include <cstddef>
#include <cstdint>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <vector>

#include "host/output_file.hpp"
#include "mmu/expected.hpp"

namespace strata::replay {

/// One line for the user.
struct FileError {
  std::string message;
};
template <class T>
using Result = Expected<T, FileError>;

enum class FileKind : std::uint8_t { state = 1, recording = 2 };
enum class ChunkType : std::uint8_t {
  machine = 1,  ///< CBOR: configuration, clock, vCPUs, devices
  memory = 2,   ///< pages: u64 PPN and 4096 bytes, repeated
  events = 3,   ///< see event.hpp
  end = 4       ///< CBOR: how it ended
};

/// A chunk's bytes before compression, at most.
inline constexpr std::size_t kMaxChunkBytes = 4U << 20;
inline constexpr std::uint16_t kFormatVersion = 1;

struct Chunk {
  ChunkType type = ChunkType::end;
  std::vector<std::byte> bytes;
};

/// One thread. Errors of writing are kept and come out of finish().
class ChunkWriter {
 public:
  /// Throws away what `file` holds. Error: the host has no memory.
  [[nodiscard]] static Result<std::unique_ptr<ChunkWriter>> create(host::OutputFile file,
                                                                   FileKind kind);
  ~ChunkWriter();
  ChunkWriter(const ChunkWriter&) = delete;
  ChunkWriter& operator=(const ChunkWriter&) = delete;
  /// `bytes`: 1 to kMaxChunkBytes.
  void write(ChunkType type, std::span<const std::byte> bytes);
  void write_json(ChunkType type, const nlohmann::json& value);
  /// Closes the file. Error: something could not be written (a full disk).
  [[nodiscard]] Result<void> finish();

 private:
  struct Compressor;
  explicit ChunkWriter(host::OutputFile file);
  host::OutputFile file_;
  std::unique_ptr<Compressor> compressor_;
  std::vector<std::byte> packed_;
  std::uint32_t sequence_ = 0;
};

/// One thread. The file is hostile: nothing in it is believed before it was checked.
class ChunkReader {
 public:
  /// Errors: cannot be read; not such a file; of another version or kind.
  [[nodiscard]] static Result<std::unique_ptr<ChunkReader>> open(const std::string& path,
                                                                 FileKind kind);
  /// The next chunk. Errors: cut off, damaged.
  [[nodiscard]] Result<Chunk> next();
  [[nodiscard]] const std::string& path() const noexcept { return path_; }

 private:
  explicit ChunkReader(const std::string& path);
  const std::string path_;
  std::ifstream file_;
  std::vector<std::byte> packed_;
  std::uint32_t sequence_ = 0;
};

/// The JSON value of a CBOR chunk; `path` names the file in errors. Nesting is bounded before
/// anything is built, since the parser recurses.
[[nodiscard]] Result<nlohmann::json> parse_cbor(std::span<const std::byte> bytes,
                                                const std::string& path);

}  // namespace strata::replay
