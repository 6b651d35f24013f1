// What this process has mapped, as the kernel tells.
#pragma once

#include <cstdint>
#include <fstream>
#include <string>
#include <vector>

namespace strata::bt::test {

struct Mapping {
  std::uint64_t begin = 0, end = 0;
  std::string rights;  ///< as in proc(5): "rw-s"
};

inline std::vector<Mapping> process_maps() {
  std::vector<Mapping> maps;
  std::ifstream file{"/proc/self/maps"};
  for (std::string line; std::getline(file, line);) {
    Mapping m;
    std::size_t at = 0;
    m.begin = std::stoull(line, &at, 16);
    std::size_t more = 0;
    m.end = std::stoull(line.substr(at + 1), &more, 16);
    m.rights = line.substr(at + 1 + more + 1, 4);
    maps.push_back(std::move(m));
  }
  return maps;
}

/// Rights of the page at a host address; empty: nothing is mapped.
inline std::string rights_at(std::uint64_t address) {
  for (const Mapping& m : process_maps()) {
    if (m.begin <= address && address < m.end) return m.rights.substr(0, 3);
  }
  return {};
}

/// Bytes in [begin, end) that anything may read, write or execute.
inline std::uint64_t accessible_bytes(std::uint64_t begin, std::uint64_t end) {
  std::uint64_t bytes = 0;
  for (const Mapping& m : process_maps()) {
    if (m.rights.starts_with("---") || m.end <= begin || end <= m.begin) continue;
    bytes += std::min(m.end, end) - std::max(m.begin, begin);
  }
  return bytes;
}

/// No address of [begin, end) is free for another mapping of the process to be put there.
inline bool all_reserved(std::uint64_t begin, std::uint64_t end) {
  for (const Mapping& m : process_maps()) {
    if (m.begin <= begin && begin < m.end) begin = m.end;
  }
  return begin >= end;
}

}  // namespace strata::bt::test
