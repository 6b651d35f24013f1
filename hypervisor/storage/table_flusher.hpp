// Flushes of an overlay: data is on stable storage before the table says that it is there.
#pragma once

#include <vector>

#include "storage/file_engine.hpp"
#include "storage/shared_table.hpp"

namespace strata::storage {

/// One chain at a time: flush the data, write the changed sectors of the table, flush those. The
/// table's file never names a cluster whose data could still be lost. Thread-safe.
class TableFlusher final : private Completion {
 public:
  TableFlusher(FileEngine& engine, SharedTable& shared) noexcept
      : engine_{engine}, shared_{shared} {}
  void submit(Completion& done);

 private:
  enum class Phase : std::uint8_t { idle, data, table, last };

  void completed(Status status) noexcept override;
  void step(Status status);
  [[nodiscard]] Phase first_phase();
  void begin(Phase phase);
  void write_table();
  void end(Status status);

  FileEngine& engine_;
  SharedTable& shared_;
  PartCount parts_;
  std::vector<ClusterTable::Dirty> sectors_;  ///< of the chain
  Phase phase_ = Phase::idle;                 ///< of the chain

  // Guarded by shared_.lock.
  bool running_ = false;
  bool failed_ = false;
  std::vector<Completion*> current_;  ///< served by the chain
  std::vector<Completion*> next_;     ///< asked after it began
};

}  // namespace strata::storage
