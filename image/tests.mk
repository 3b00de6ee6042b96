
# ZFS's configure asks for the kernel's interfaces by compiling some two hundred directories of one
# file each. One make compiles them all here, and linux/module.h, which every one of them begins
# with, is compiled once, in advance; a compiler that cannot use it so reads it as it is. Some fail on
# what they have made, so it is tried out first.
ifneq ($(KBUILD_EXTMOD),)
tests := $(patsubst %/,%,$(filter %/,$(obj-m)))
ifneq ($(tests),)
define read-test
ccflags-y :=
include $(src)/$(1)/Makefile
CFLAGS_$(1)/$(1).o := $$(ccflags-y)
CFLAGS_$(1).o := $$(ccflags-y)
endef
$(foreach test,$(tests),$(eval $(call read-test,$(test))))
ccflags-y :=
obj-m := $(foreach test,$(tests),$(test)/$(test).o)

# What is compiled in advance is valid only where the same macros are defined.
override basename_flags := -DKBUILD_BASENAME='"test"'
override modname_flags := -DKBUILD_MODNAME='"test"' -D__KBUILD_MODNAME=kmod_test
override modfile_flags := -DKBUILD_MODFILE='"test"'
NOSTDINC_FLAGS += -include $(obj)/first.h
$(addprefix $(obj)/,$(obj-m)): $(obj)/first.h.gch
$(obj)/first.h.gch: part-of-module := y
$(obj)/first.h.gch:
	printf '#include <linux/%s.h>\n' kconfig compiler_types module >$(obj)/first.h
	for try in 1 2 3; do \
		[ $$try != 1 ] || $(CC) $(c_flags) -x c-header -o $@ $(obj)/first.h; \
		$(CC) $(c_flags) -x c -c -o $@.o /dev/null || rm -f $@; \
	done
endif
endif

