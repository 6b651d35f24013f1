// What the host kernel says of this process's memory, also when it can no longer open files.
#pragma once

#include <cstdint>
#include <string_view>

#include "machine/machine_memory.hpp"

namespace strata::host {

/// Opens its files of /proc when made; where there are none, everything reads as 0.
class OwnMemory {
 public:
  /// Resident memory by kind of mapping, in bytes.
  struct Mappings {
    std::uint64_t resident = 0;
    std::uint64_t guest = 0;   ///< of mappings whose name holds `guest_name`
    std::uint64_t binary = 0;  ///< of files: text and libraries
  };

  OwnMemory();
  [[nodiscard]] Mappings mappings(std::string_view guest_name) const;
  /// VmPTE: the host kernel's tables for this process, in bytes.
  [[nodiscard]] std::uint64_t page_table_bytes() const;

 private:
  machine::FileDescriptor smaps_;
  machine::FileDescriptor status_;
};

}  // namespace strata::host
