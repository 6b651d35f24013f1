// The lock order of the whole program (design rule 7). A thread takes locks downwards only; where
// two are on one line, never both. Each lock says where it is declared what it guards.
//
//   vmm::Vm::lock_                    outcome; nothing is called under it
//   interp::VcpuGroup::turn_          one vCPU alone; the holder executes an instruction under it
//   devices: a device's own mutex_    UART, PIT, RTC, PM, PIC, I/O APIC (in that direction)
//   virtio::PciTransport::lock_       registers; shared by notify(), else exclusive; devices
//                                     call disks and their queues under it
//   virtio::Console, Entropy mutex_   held while queues, the sink and the transport are called
//   virtio::Net, one a direction      held while queues, the link's send() and the transport are
//   pci::PciDevice::mutex_, Msix's    a function's own registers; messages go out under Msix's
//   virtio::Queue::mutex_             held while guest memory is accessed
//   devices::LocalApic::mutex_        released before the bus, the PIC or callbacks are called
//   machine::GuestMemory listeners    held shared while listeners are called
//   machine::P2mTable observers_lock_ held shared while observers are called
//   shadow, nested: the backend lock  never held across P2m::resolve() or Flush::commit(); shadow:
//                                     shared for hits of any number of vCPUs, exclusive to change
//   machine::FrameAllocator           central list; its per-thread caches are leaves
//   FlushDomain::lock_                held while holders' invalidate() runs
//   interp::Core::mailbox_lock_       leaf
//   kvm::HostWindow::lock_            leaf
//   kvm::Processor::thread_lock_      leaf
//   vmm::VcpuThread::lock_            leaf: what a vCPU is asked to do
//   devices::TimerQueue::mutex_       leaf
//   network::FrameRing::mutex_        leaf
//   storage::UringEngine::lock_       leaf; held while requests are given to the kernel. Devices
//                                     call disks, and disks call devices, with no lock of theirs
//   storage::SynchronousEngine::flush_lock_  leaf; held during fdatasync
//
// The P2M itself has no lock: entries change by compare-and-swap of one word.
#pragma once
