/* What all of ZFS's files but those of spl.ko begin with; one of spl.ko defines a name before it. */
#include "/zfs/zfs_config.h"
#if __has_include(<sys/zfs_context.h>)
#include <sys/zfs_context.h>
#endif
