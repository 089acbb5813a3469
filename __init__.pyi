"""The public API: each name stands here once. `__init__.py` imports it when it is first used; type checkers read this file."""

from .runtime.errors import (
    ArchiveError as ArchiveError,
)
from .runtime.errors import (
    BundleError as BundleError,
)
from .runtime.errors import (
    CheckpointError as CheckpointError,
)
from .runtime.errors import (
    ConfigError as ConfigError,
)
from .runtime.errors import (
    EncodingError as EncodingError,
)
from .runtime.errors import (
    ExportError as ExportError,
)
from .runtime.errors import (
    FileListError as FileListError,
)
from .runtime.errors import (
    GalleryError as GalleryError,
)
from .runtime.errors import (
    GalleryMismatchError as GalleryMismatchError,
)
from .runtime.errors import (
    GatewayError as GatewayError,
)
from .runtime.errors import (
    ImageError as ImageError,
)
from .runtime.errors import (
    KeyConflictError as KeyConflictError,
)
from .runtime.errors import (
    LcmemError as LcmemError,
)
from .runtime.errors import (
    ProviderError as ProviderError,
)
from .runtime.errors import (
    Reason as Reason,
)
from .runtime.errors import (
    TrainingError as TrainingError,
)
from .runtime.errors import (
    UsageError as UsageError,
)
from .runtime.gallery import (
    Entry as Entry,
)
from .runtime.gallery import (
    Gallery as Gallery,
)
from .runtime.gallery import (
    Hit as Hit,
)
from .runtime.gallery import (
    Identity as Identity,
)
from .runtime.gallery import (
    SearchResult as SearchResult,
)
from .runtime.images.formats import (
    Limits as Limits,
)
from .runtime.model.bundle import (
    Bundle as Bundle,
)
from .runtime.model.bundle import (
    open_bundle as open_bundle,
)
from .runtime.model.head import (
    Head as Head,
)
from .runtime.privacy import (
    SiteKey as SiteKey,
)
from .runtime.results import (
    Comparison as Comparison,
)
from .runtime.results import (
    Indexed as Indexed,
)
from .runtime.results import (
    Result as Result,
)
from .runtime.results import (
    Verdict as Verdict,
)
from .runtime.screening import (
    Screener as Screener,
)
