// The file that a Unix listener stands at: when one that is in the way may go, and whose it is at the end.
//
// A process that crashed leaves its file behind, on which nobody can listen again. Such a file is told from one whose owner lives
// by asking the kernel, and is replaced; anything else at the path is left alone. At the end the file goes only if it is still
// the one that was bound: somebody may have put his own there since. Its mode is what the process's umask leaves of 0777, as
// bind(2) has it.
//
// Thread: as the calls themselves. A path that is not absolute means the directory the process is in at each call.
#pragma once

#include <optional>
#include <string>

#include "sys/sys.hpp"
#include "vigil/address.hpp"
#include "vigil/result.hpp"
#include "vigil/socket.hpp"

namespace vigil {

class UnixPath {
 public:
  /// Of a socket that was just bound to it, and is open as long as this lives: only then can its inode have no successor.
  explicit UnixPath(std::string path);

  [[nodiscard]] bool is_own() const;
  /// Removes the file if it is still the own one. Before the socket is closed.
  void remove() const;

 private:
  std::string path_;
  bool found_ = false;
  dev_t device_ = 0;
  ino_t inode_ = 0;
};

/// As listen_on, on a path; a stale file is replaced. EADDRINUSE: the path's owner lives, or what stands there is no socket.
[[nodiscard]] Result<Socket> listen_on_path(const Address& address, const ListenSocketOptions& options,
                                            std::optional<UnixPath>& own);

}  // namespace vigil
