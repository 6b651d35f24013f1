// A disk that begins as a base image, which it never changes, and keeps changes in an overlay.
#pragma once

#include <memory>
#include <vector>

#include "storage/cluster_writer.hpp"
#include "storage/file_engine.hpp"
#include "storage/image_file.hpp"
#include "storage/overlay_file.hpp"
#include "storage/shared_table.hpp"
#include "storage/table_flusher.hpp"

namespace strata::storage {

class OverlayDisk final : public Disk {
 public:
  /// `engine` works on two files: kBaseFile and kOverlayFile.
  OverlayDisk(ImageFile base, OverlayFile overlay, Access access,
              std::unique_ptr<FileEngine> engine);
  /// What was not flushed is, as far as the host can.
  ~OverlayDisk() override;

  [[nodiscard]] std::uint64_t bytes() const noexcept override { return base_.bytes; }
  [[nodiscard]] bool read_only() const noexcept override { return access_ == Access::read_only; }
  [[nodiscard]] bool discards() const noexcept override { return overlay_.punches; }
  [[nodiscard]] std::string_view engine() const noexcept override { return engine_->name(); }
  void start() override { engine_->start(); }
  void submit(const Request& request, Completion& done) override;
  void kick() override { engine_->kick(); }
  void drain() override { engine_->drain(); }

 private:
  /// A part of a request that lies in one file.
  struct Run {
    bool held = false;
    std::uint64_t offset = 0, length = 0;  ///< of the disk, bytes
  };
  class Split;

  void submit_runs(const Request& request, Completion& done);
  void submit_run(const Request& request, const Run& run, Completion& done);
  [[nodiscard]] Run run_at(std::uint64_t offset, std::uint64_t end) const;
  [[nodiscard]] Split& take_split(Completion& done, unsigned parts);
  void give_back(Split& split);

  const ImageFile base_;
  const ImageFile overlay_;
  const std::uint64_t data_offset_;
  const Access access_;
  SharedTable shared_;
  const std::unique_ptr<FileEngine> engine_;
  ClusterWriter writer_;
  TableFlusher flusher_;

  // Guarded by shared_.lock.
  std::vector<std::unique_ptr<Split>> splits_;
  std::vector<Split*> free_;
};

}  // namespace strata::storage
